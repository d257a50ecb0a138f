"""HTTP over a real socket, before a real NATS server: jobs, answers as events, problems, and how the server ends."""

import json
import shutil
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import cv2
import httpx
import msgspec
import numpy as np
import pytest
import structlog
from conftest import Eventually
from openapi_spec_validator import OpenAPIV31SpecValidator
from sites import EACH, Site, serving, site

from engine.decide.answer import Answer
from operators.testing.film import film
from penstock.http import serve_http
from penstock.http.routes import HANDLERS
from streams import subjects
from streams.errors import UserError
from streams.records import encode
from streams.wire.ledger import Ledger

pytestmark = pytest.mark.anyio


@pytest.fixture
async def here(nats_url: str) -> AsyncIterator[Site]:
    async with site(nats_url) as running:
        yield running


class Events:
    """Server-Sent Events as a browser takes them apart."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, str]:
        """The next event; a comment is one of the kind ":". Empty where there is none any more."""
        found: dict[str, str] = {}
        with anyio.fail_after(20):
            async for line in self._lines:
                if line.startswith(":"):
                    found[":"] = line[1:].strip()
                elif line:
                    name, _, value = line.partition(":")
                    found[name] = f"{found[name]}\n{value[1:]}" if name in found else value[1:]
                elif found and set(found) != {"retry"}:
                    return found
                else:
                    found = {}
        return found

    async def numbers(self, num: int) -> dict[int, int]:
        """What the next answers say, by sequence."""
        found = {}
        for _ in range(num):
            event = await self.next()
            assert event["event"] == "answer"
            found[int(event["id"])] = value_of(event["data"])
        return found


def value_of(data: str | bytes) -> int:
    return int(msgspec.json.decode(data, type=Answer).output["value"])


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and detail, of what must be a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    said = response.json()
    assert said["status"] == response.status_code
    assert said["type"] == "about:blank"
    assert "\n" not in said["detail"]
    return response.status_code, said["detail"]


# --- jobs ----------------------------------------------------------------------------------------------------------


async def test_a_job_from_submission_to_its_answers(here: Site) -> None:
    await here.publish([1, 2, 3], end=True)
    response = await here.http.post(
        "/v1/jobs", json={"stream": "s", "workflow": msgspec.to_builtins(EACH), "drafts": False}
    )
    assert response.status_code == 201
    submitted = response.json()
    assert (submitted["stream"], submitted["new"], submitted["first"]) == ("s", ["read"], 0)
    assert response.headers["location"] == f"/v1/jobs/{submitted['job']}"
    async with here.http.stream("GET", f"/v1/jobs/{submitted['job']}/answers") as stream:
        events = Events(stream)
        assert list((await events.numbers(3)).values()) == [1, 2, 3]
        end = await events.next()
        assert (end["event"], json.loads(end["data"])["state"]) == ("end", "done")
        assert await events.next() == {}
    view = (await here.http.get(response.headers["location"])).json()
    assert (view["state"], view["workflow"]) == ("done", "each")
    listed = await here.http.get(f"/v1/jobs/{submitted['job']}/answers", headers={"Accept": "application/json"})
    assert listed.headers["content-type"] == "application/json"
    assert [answer["output"]["value"] for answer in listed.json()] == [1, 2, 3]


async def test_without_a_workflow_a_job_runs_the_one_that_answers_questions(here: Site) -> None:
    await here.publish([4, 5], end=True)
    response = await here.http.post("/v1/jobs", json={"stream": "s"})
    async with here.http.stream("GET", f"/v1/jobs/{response.json()['job']}/answers") as stream:
        assert list((await Events(stream).numbers(1)).values()) == [9]


async def test_jobs_are_listed_by_stream_and_state_and_canceled(here: Site) -> None:
    await here.publish([1])
    await here.publish([2], stream="t", end=True)
    running, ended = await here.submit(), await here.submit(stream="t")
    async with here.http.stream("GET", f"/v1/jobs/{ended}/answers") as stream:
        events = Events(stream)
        while (await events.next()).get("event") != "end":
            pass

    async def listed(**query: str) -> set[str]:
        response = await here.http.get("/v1/jobs", params=query)
        return {job["job"] for job in response.json()["jobs"]}

    assert await listed() == {running, ended}
    assert await listed(stream="t") == {ended}
    assert await listed(state="running") == {running}
    async with here.http.stream("GET", f"/v1/jobs/{running}/answers") as stream:
        events = Events(stream)
        await events.numbers(1)
        canceled = await here.http.delete(f"/v1/jobs/{running}")
        assert (canceled.status_code, canceled.json()["state"]) == (200, "canceled")
        end = await events.next()
        assert (end["event"], json.loads(end["data"])["state"]) == ("end", "canceled")
    assert (await here.http.delete(f"/v1/jobs/{ended}")).json()["state"] == "done"
    assert await listed(state="running") == set()


# --- answers as events ---------------------------------------------------------------------------------------------


async def test_events_go_on_where_the_client_was(here: Site) -> None:
    await here.publish([1, 2, 3])
    job = await here.submit()
    async with here.http.stream("GET", f"/v1/jobs/{job}/answers") as stream:
        first = await Events(stream).numbers(2)
    last_seen = max(first)
    resumed = {"Last-Event-ID": str(last_seen)}
    async with here.http.stream("GET", f"/v1/jobs/{job}/answers?after=0", headers=resumed) as stream:
        events = Events(stream)
        assert list((await events.numbers(1)).values()) == [3]
        await here.publish([4], first=3, end=True)  # what comes while it listens
        assert list((await events.numbers(1)).values()) == [4]
        assert (await events.next())["event"] == "end"
    async with here.http.stream("GET", f"/v1/jobs/{job}/answers?after={last_seen}") as stream:
        assert list((await Events(stream).numbers(2)).values()) == [3, 4]
    later = await here.http.get(
        f"/v1/jobs/{job}/answers", params={"after": last_seen}, headers={"Accept": "application/json"}
    )
    assert [answer["output"]["value"] for answer in later.json()] == [3, 4]
    none = await here.http.get(f"/v1/jobs/{job}/answers?after=-1", headers={"Accept": "application/json"})
    assert none.json() == []


async def test_answers_of_all_of_a_stream_and_of_a_job(here: Site) -> None:
    await here.publish([1, 2], end=True)
    await here.publish([7], stream="t", end=True)
    job, other = await here.submit(), await here.submit(stream="t")
    async with here.http.stream("GET", "/v1/answers") as stream:
        assert sorted((await Events(stream).numbers(3)).values()) == [1, 2, 7]
    async with here.http.stream("GET", "/v1/answers?stream=t") as stream:
        event = await Events(stream).next()
        assert (value_of(event["data"]), json.loads(event["data"])["job"]) == (7, other)
    async with here.http.stream("GET", f"/v1/answers?job={job}") as stream:
        assert list((await Events(stream).numbers(2)).values()) == [1, 2]
    await here.publish([1], stream="u")
    async with here.http.stream("GET", "/v1/answers?after=-1") as stream:  # only what comes from now on
        events = Events(stream)
        await here.submit(stream="u")
        assert list((await events.numbers(1)).values()) == [1]
        await here.publish([8], first=1, stream="u", end=True)
        assert list((await events.numbers(1)).values()) == [8]


async def test_silence_is_filled_with_comments(nats_url: str) -> None:
    async with (
        site(nats_url, works=False, keep_alive_s=0.02) as here,
        here.http.stream("GET", "/v1/answers") as stream,
    ):
        events = Events(stream)
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert [await events.next() for _ in range(3)] == [{":": "keep-alive"}] * 3


async def test_line_breaks_in_what_others_published_do_not_break_an_event(nats_url: str) -> None:
    async with site(nats_url, works=False) as here:
        await here.ledger.append(subjects.answers("j", "s"), b'{"odd":\n1,\r\n"end": "\\n\\nevent: end"}', 0)
        async with here.http.stream("GET", "/v1/answers") as stream:
            event = await Events(stream).next()
            assert event["event"] == "answer"
            assert json.loads(event["data"]) == {"odd": 1, "end": "\n\nevent: end"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_is_a_client_of_events(here: Site) -> None:
    await here.publish([1, 2], end=True)
    job = await here.submit()
    done = await anyio.run_process(
        ["curl", "-sN", "--noproxy", "*", "--max-time", "20", f"{here.url}/v1/jobs/{job}/answers"]
    )
    blocks = [
        dict(line.partition(": ")[::2] for line in block.splitlines()) for block in done.stdout.decode().split("\n\n")
    ]
    events = [(block["event"], block["data"]) for block in blocks if "event" in block]
    assert [kind for kind, _ in events] == ["answer", "answer", "end"]
    assert [value_of(data) for _, data in events[:2]] == [1, 2]


class CountingLedger:
    """A ledger that counts how many records were read, by subject."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.num_read: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def next(self, subject: str, seq: int) -> Any:
        noted = await self._ledger.next(subject, seq)
        self.num_read[subject] = self.num_read.get(subject, 0) + (noted is not None)
        return noted


async def test_a_client_that_does_not_read_costs_no_memory_and_is_cut_off(
    nats_url: str, eventually: Eventually
) -> None:
    num, size = 200, 200_000
    async with site(nats_url, works=False) as here:
        seq = 0
        for number in range(num):
            seq = await here.ledger.append(subjects.answers("j", "s"), b'"%06d%s"' % (number, b"x" * size), seq) or 0
        counting: Any = CountingLedger(here.ledger)
        with structlog.testing.capture_logs() as logs:
            async with serving(here.services, here.registry, counting, stall_s=1.0) as url:
                port = int(url.rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port)) as idle:
                    idle.sendall(b"GET /v1/answers?job=j HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    async with here.http.stream("GET", f"{url}/v1/answers?stream=s") as stream:  # served meanwhile
                        events = Events(stream)
                        assert [int((await events.next())["data"][1:7]) for _ in range(num)] == list(range(num))
                    assert counting.num_read["penstock.answers.*.s"] == num
                    assert counting.num_read["penstock.answers.j.*"] < num / 2
                    await eventually(lambda: sum(entry["event"] == "http" for entry in logs) == 2)
                assert counting.num_read["penstock.answers.j.*"] < num / 2


# --- problems ------------------------------------------------------------------------------------------------------


async def test_what_is_wrong_is_said_in_one_line(here: Site) -> None:
    await here.http.put("/v1/streams/s", json={})
    empty = {"name": "w", "stages": {}}
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", "/v1/jobs", {"content": b"{"}, 400, "truncated"),
        (
            "POST",
            "/v1/jobs",
            {"content": b'{"stream":"\xff"}', "headers": {"content-type": "application/json"}},
            400,
            "the body is no UTF-8",
        ),
        ("POST", "/v1/jobs", {}, 400, "body: is missing; its keys are stream, workflow"),
        ("POST", "/v1/jobs", {"json": {"stream": 1}}, 400, "stream: Expected `str`, got `int`"),
        (
            "POST",
            "/v1/jobs",
            {"json": {"stream": "s", "ask": 1}},
            400,
            "unknown field `ask`; its keys are stream, work",
        ),
        ("POST", "/v1/jobs", {"json": {"stream": "s", "workflow": empty}}, 400, "'w' has no stages"),
        ("POST", "/v1/jobs", {"json": {"stream": "nix"}}, 400, "no stream 'nix'; there are: s."),
        ("POST", "/v1/jobs", {"json": {"stream": "s", "webhook": "x" * 2_000_000}}, 413, ""),
        ("GET", "/v1/jobs?state=odd", {}, 400, "state: Invalid enum value 'odd'; give one of running, done, canceled"),
        ("GET", "/v1/jobs/nix", {}, 404, "no job 'nix'"),
        ("DELETE", "/v1/jobs/nix", {}, 404, "no job 'nix'"),
        ("GET", "/v1/jobs/a%20b", {}, 404, "'a b' cannot be part of a subject"),
        ("GET", "/v1/jobs/nix/answers", {}, 404, "no job 'nix'"),
        ("GET", "/v1/answers?job=a.b", {}, 400, "'a.b' cannot be part of a subject"),
        ("GET", "/v1/answers", {"headers": {"Last-Event-ID": "x"}}, 400, "Last-Event-ID: 'x': give the id"),
        ("GET", "/v1/answers?after=-2", {}, 400, "after: Expected `int` >= -1"),
        ("GET", "/v1/streams/nix", {}, 404, "no stream 'nix'; there are: s"),
        ("PUT", "/v1/streams/x", {"json": {"segment_s": 0.1}}, 400, "segment_s: 0.1: give between 0.2 and 60 s"),
        ("PUT", "/v1/streams/x", {"json": {"policy": "odd"}}, 400, "Invalid enum value 'odd'"),
        ("PUT", "/v1/streams/a%20b", {"json": {}}, 400, "'a b' cannot be part of a subject"),
        ("GET", "/v1/nix", {}, 404, "nothing is at /v1/nix: see /openapi.json"),
    ]
    for method, path, sent, status, part in cases:
        found, detail = problem(await here.http.request(method, path, **sent))
        assert (found, part in detail) == (status, True), detail
    wrong = await here.http.patch("/v1/jobs")
    assert problem(wrong)[0] == 405
    assert "POST" in wrong.headers["allow"]


async def test_what_fails_inside_is_logged_and_not_told(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> Any:
        raise RuntimeError("the secret inside")

    async with site(nats_url, works=False) as here:
        monkeypatch.setattr(here.registry, "jobs", fail)
        with structlog.testing.capture_logs() as logs:
            status, detail = problem(await here.http.get("/v1/jobs"))
    assert (status, detail) == (500, "internal error: the log of this node has it")
    assert any(entry["event"] == "http_failed" and "secret" in str(entry["exc_info"]) for entry in logs)


async def test_a_page_of_another_site_cannot_change_anything(here: Site) -> None:
    elsewhere = {"Origin": "https://elsewhere.example"}
    response = await here.http.put("/v1/streams/s", json={}, headers=elsewhere)
    assert problem(response) == (403, "pages of other sites may not change anything here")
    assert await here.registry.streams() == {}
    assert (await here.http.get("/v1/streams", headers=elsewhere)).status_code == 200
    assert (await here.http.put("/v1/streams/s", json={}, headers={"Origin": here.url})).status_code == 200


async def test_a_page_whose_name_leads_here_is_told_nothing_and_changes_nothing(here: Site) -> None:
    """DNS rebinding: to the browser it is all one site, so there is an Origin that is the Host's."""
    port = here.url.rpartition(":")[2]
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "[::1"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        for method, path in (("GET", "/v1/streams"), ("GET", "/metrics"), ("PUT", "/v1/streams/s")):
            status, line = problem(await here.http.request(method, path, json={}, headers=headers))
            assert status == 421
            assert "is no name of this node" in line
            assert "PENSTOCK_HTTP_HOSTS" in line
    assert await here.registry.streams() == {}


async def test_a_refusal_reaches_a_client_that_is_still_sending(here: Site) -> None:
    """The connection is not reset on it, and it is not made to send all."""
    port = int(here.url.rpartition(":")[2])
    async with await anyio.connect_tcp("127.0.0.1", port) as connection:
        await connection.send(
            b"POST /v1/operators/nix HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        )
        await connection.send(b"x" * 5_000_000)
        received = b""
        with anyio.fail_after(20):
            while not received.endswith(b"}"):
                received += await connection.receive()
    assert b" 404 " in received.splitlines()[0]
    assert b"connection: close" in received
    assert b"no capability 'nix' is installed" in received


# --- streams, nodes, health ----------------------------------------------------------------------------------------


async def test_streams_are_declared_and_shown_without_their_credentials(here: Site) -> None:
    url = "rtsp://user:secret@camera.invalid/door?token=hidden"
    settings = {"policy": "live", "segment_s": 2, "max_lag_s": 4, "url": url}
    declared = await here.http.put("/v1/streams/door", json=settings)
    assert declared.status_code == 200
    for view in (declared.json(), (await here.http.get("/v1/streams/door")).json()):
        assert (view["stream"], view["policy"], view["segment_s"], view["max_lag_s"]) == ("door", "live", 2, 4)
        assert view["source"] == "rtsp://camera.invalid/..."
    assert (await here.registry.stream("door")) is not None
    listed = await here.http.get("/v1/streams")
    assert [view["stream"] for view in listed.json()["streams"]] == ["door"]
    assert "secret" not in listed.text
    assert "hidden" not in listed.text
    assert (await here.http.delete("/v1/streams/door")).status_code == 204
    assert (await here.http.get("/v1/streams")).json() == {"streams": []}
    assert problem(await here.http.delete("/v1/streams/door"))[0] == 404


async def test_a_stream_shows_itself(here: Site) -> None:
    pictures = np.zeros((50, 48, 64, 3), np.uint8)
    pictures[25:, ..., 1] = 200  # from the second second on it is green
    for segment in film(pictures, segment_s=1.0):
        data = encode(msgspec.structs.replace(segment, stream="seen"))
        await here.ledger.put(subjects.media("seen", segment.index), data)

    async def shot(**asked: Any) -> Any:
        response = await here.http.get("/v1/streams/seen/snapshot", params=asked)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
        return cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)

    greens = [int((await shot(at=at))[24, 32, 1]) for at in ("0:00.4", "0.99s", "0:01", "now")]
    assert [green > 100 for green in greens] == [False, False, True, True]
    assert (await shot(plain=True)).shape == (48, 64, 3)
    for path, status, said in (
        ("none/snapshot", 404, "nothing of a stream 'none'"),
        ("seen/snapshot?at=9:00", 400, "lies beyond"),
        ("seen/snapshot?at=noon", 400, "is no moment"),
        ("seen/snapshot?at=" + "1" * 99, 400, "at"),
    ):
        found, detail = problem(await here.http.get(f"/v1/streams/{path}"))
        assert found == status
        assert said in detail
    await here.publish([1], stream="blind")
    assert problem(await here.http.get("/v1/streams/blind/snapshot"))[0] == 404


async def test_ready_when_a_node_works_and_nats_answers(nats_url: str, eventually: Eventually) -> None:
    async with site(nats_url, works=False, ready_s=0.5) as here:
        assert (await here.http.get("/healthz")).json() == {"status": "up"}
        assert problem(await here.http.get("/readyz")) == (503, "no node with workers is alive: start `penstock serve`")
    async with site(nats_url, ready_s=0.5, request_s=0.5) as here:
        while (response := await here.http.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        assert response.json() == {"status": "ready", "num_nodes": 1}
        assert (await here.http.get("/v1/nodes")).json()["nodes"][0]["id"] == "n1"
        await here.ledger.link.jetstream.publish("$KV.penstock_jobs.bad", b"no job")
        (aside,) = (await here.http.get("/readyz")).json()["detail"]
        assert aside.startswith("job bad: ")

        async def unheard(*_: Any, **__: Any) -> Any:
            await anyio.sleep_forever()

        with pytest.MonkeyPatch.context() as away:
            away.setattr(here.ledger.link.client, "request", unheard)
            away.setattr(here.registry, "nodes", unheard)
            away.setattr(here.registry, "jobs", unheard)
            silent = await here.http.get("/readyz")
            assert problem(silent) == (503, "NATS does not answer within 0.5 s")
            assert silent.headers["retry-after"] == "2"
            assert problem(await here.http.get("/v1/jobs"))[0] == 504
            assert (await here.http.get("/healthz")).status_code == 200


# --- the document --------------------------------------------------------------------------------------------------


async def test_the_openapi_document_is_valid_and_has_every_operation(here: Site) -> None:
    response = await here.http.get("/openapi.json")
    document = response.json()
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")
    assert "cdn" not in response.text
    operations = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert operations == {handler.fn.__name__ for handler in HANDLERS}
    answers = document["paths"]["/v1/jobs/{job}/answers"]["get"]["responses"]["200"]["content"]
    assert set(answers) == {"text/event-stream", "application/json"}
    assert (
        "application/octet-stream" in document["paths"]["/v1/streams/{stream}/media"]["post"]["requestBody"]["content"]
    )
    for path in ("/", "/schema", "/schema/redoc", "/docs"):
        assert problem(await here.http.get(path))[0] == 404


# --- the server ----------------------------------------------------------------------------------------------------


async def test_an_address_that_cannot_be_served_is_the_users(here: Site) -> None:
    serve = partial(serve_http, services=here.services, registry=here.registry, ledger=here.ledger)
    for address in ("8080", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", ""):
        with pytest.raises(UserError, match=r"^--http .*give host:port, such as 127.0.0.1:8080"):
            await serve(address)
    taken = here.url.removeprefix("http://")
    with pytest.raises(UserError, match=rf"^--http {taken}: address already in use; give another"):
        await serve(taken)
    with pytest.raises(UserError, match=r"^--http no-such-host.invalid:0: "):
        await serve("no-such-host.invalid:0")


async def test_it_ends_at_once_whatever_is_open(nats_url: str) -> None:
    async with site(nats_url, works=False) as here, httpx.AsyncClient(trust_env=False) as client:
        ended = anyio.Event()

        async def until_it_ends(url: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with client.stream("GET", f"{url}/v1/answers") as stream:
                task_status.started()
                with anyio.fail_after(20):
                    assert await Events(stream).next() == {}  # an orderly end: nothing is cut in two
            ended.set()

        async with anyio.create_task_group() as tasks:
            async with serving(here.services, here.registry, here.ledger) as url:
                await tasks.start(until_it_ends, url)
                stuck = await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2]))
                await stuck.send(b"POST /v1/streams/x/media HTTP/1.1\r\nHost: ::1\r\nContent-Length: 9000\r\n\r\nabc")
                while await here.registry.stream("x") is None:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                began_s = anyio.current_time()
            took_s = anyio.current_time() - began_s
            await ended.wait()
        await stuck.aclose()
        assert took_s < 5.0
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/healthz")
