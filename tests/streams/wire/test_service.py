"""Services over a real server: found, asked, refused in one line, bounded, and there again after the server died."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import nats.errors
import pytest
import structlog
from conftest import Eventually
from nats.aio.msg import Msg
from nats.micro.service import ServiceInfo, ServicePing, ServiceStats

from streams.errors import LinkError, PenstockError, Permanent, Transient, UserError
from streams.wire import asking as asking_module
from streams.wire import service as service_module
from streams.wire.asking import ask
from streams.wire.link import Link, connect
from streams.wire.server import embedded
from streams.wire.service import Endpoint, Request, serve
from streams.wire.store import status

pytestmark = pytest.mark.anyio
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[Link]:
    async with connect(nats_url) as link:
        yield link


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[Link]:
    async with connect(nats_url) as link:
        yield link


async def echo(request: Request) -> bytes:
    return request.subject.encode() + b" " + request.data


def raising(error: Exception) -> Callable[[Request], Awaitable[bytes]]:
    async def handler(request: Request) -> bytes:
        raise error

    return handler


class Gate:
    """A handler that waits to be let through."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.num_canceled = 0
        self.may_pass = anyio.Event()

    async def __call__(self, request: Request) -> bytes:
        self.num_waiting += 1
        try:
            await self.may_pass.wait()
        except anyio.get_cancelled_exc_class():
            self.num_canceled += 1
            raise
        finally:
            self.num_waiting -= 1
        return request.data


def endpoint(handler: Callable[[Request], Awaitable[bytes]], subject: str = "t.x") -> dict[str, Endpoint]:
    return {"x": Endpoint(subject=subject, handler=handler)}


async def refusal(client: Link, subject: str = "t.x", payload: bytes = b"", timeout_s: float = 15.0) -> PenstockError:
    with pytest.raises(PenstockError) as refused:
        await ask(client, subject, payload, timeout_s=timeout_s)
    assert "\n" not in str(refused.value)
    return refused.value


# --- asking ----------------------------------------------------------------------------------------------------------


async def test_whoever_asks_gets_the_reply(link: Link, client: Link) -> None:
    asked: list[Request] = []

    async def note(request: Request) -> bytes:
        asked.append(request)
        return b""

    endpoints = {
        "echo": Endpoint(subject="t.echo.*", handler=echo),
        "note": Endpoint(subject="t.note", handler=note),
    }
    with structlog.testing.capture_logs() as logs:
        async with serve(link, "test", "1.0.0", endpoints):
            assert await ask(client, "t.echo.one", b"\x00data", timeout_s=15) == b"t.echo.one \x00data"
            assert await ask(client, "t.echo.two", b"", timeout_s=15) == b"t.echo.two "
            assert await ask(client, "t.note", b"1", timeout_s=15) == b""
            assert await ask(client, "t.note", b"2", timeout_s=15, traceparent=PARENT) == b""
            await client.client.publish("t.note", b"nobody waits for the reply")
            await client.client.publish("t.note", b"", headers={"a": "b"})
            assert await ask(client, "t.note", b"3", timeout_s=15) == b""
    assert logs == []
    assert asked[:2] == [
        Request("t.note", b"1"),
        Request("t.note", b"2", {"traceparent": PARENT}, PARENT),
    ]
    assert sorted(request.data for request in asked) == [b"", b"1", b"2", b"3", b"nobody waits for the reply"]
    assert {"a": "b"} in [request.headers for request in asked]


@pytest.mark.parametrize(
    ("error", "raised", "line"),
    [
        (UserError("workflow.toml: no stage 'x'"), UserError, "workflow.toml: no stage 'x'"),
        (UserError("two\r\n  lines"), UserError, "two lines"),
        (UserError("zu groß: 3 → 4"), UserError, "zu groß: 3 → 4"),
        (UserError(""), UserError, "UserError"),
        (UserError("x" * 5000), UserError, "x" * 1000),
        (Transient("not within 5 s"), Transient, "not within 5 s"),
        (LinkError("gave up"), Transient, "gave up"),
        (Permanent("it is gone"), PenstockError, "it is gone"),
        (PenstockError("job j1 failed"), PenstockError, "job j1 failed"),
    ],
)
async def test_errors_come_back_as_what_they_are(
    error: PenstockError, raised: type[PenstockError], line: str, link: Link, client: Link
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serve(link, "test", "1.0.0", endpoint(raising(error))):
            refused = await refusal(client)
    assert type(refused) is raised
    assert str(refused) == line
    assert logs == []


@pytest.mark.parametrize(
    "error", [ValueError("token s3cr3t"), TimeoutError("s3cr3t"), ExceptionGroup("s3cr3t", [OSError()])]
)
async def test_the_text_of_an_unexpected_error_stays_in_the_log(error: Exception, link: Link, client: Link) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serve(link, "test", "1.0.0", endpoint(raising(error))):
            refused = await refusal(client)
            assert (await refusal(client, "t.x")).args == refused.args  # it goes on
    assert type(refused) is PenstockError
    assert str(refused) == "internal error: the log of the node that serves this has it"
    assert [entry["exc_info"] for entry in logs] == [error] * 2
    assert logs[0]["event"] == "request_failed"
    assert logs[0]["subject"] == "t.x"


async def test_an_error_is_in_the_headers_of_the_protocol(link: Link, client: Link) -> None:
    async with serve(link, "test", "1.0.0", endpoint(raising(UserError("say what")))):
        reply = await client.client.request("t.x", b"", timeout=15)
    assert (reply.data, reply.headers) == (
        b"",
        {"Nats-Service-Error-Code": "400", "Nats-Service-Error": "say what"},
    )


async def test_where_nobody_serves_it_is_said_how_to_start(link: Link) -> None:
    refused = await refusal(link, "t.nobody")
    assert type(refused) is LinkError
    assert str(refused) == "nobody serves t.nobody: start `penstock serve`"


async def test_who_does_not_answer_is_not_waited_for(link: Link, client: Link) -> None:
    gate = Gate()
    async with serve(link, "test", "1.0.0", endpoint(gate)):
        refused = await refusal(client, timeout_s=0.1)
        assert type(refused) is LinkError
        assert str(refused) == "t.x: no answer within 0.1 s"
        gate.may_pass.set()


async def test_a_closed_link_asks_nobody(link: Link) -> None:
    await link.client.close()
    refused = await refusal(link)
    assert type(refused) is LinkError
    assert str(refused) == "cannot ask t.x: nats: connection closed"


async def test_what_is_too_large_is_refused_by_name(link: Link, client: Link) -> None:
    async def as_large_as_asked(request: Request) -> bytes:
        return bytes(int(request.data))

    async with serve(link, "test", "1.0.0", endpoint(as_large_as_asked)):
        largest = link.max_payload_bytes
        assert len(await ask(client, "t.x", b"%d" % largest, timeout_s=15)) == largest
        refused = await refusal(client, payload=b"%d" % (largest + 1))
        assert type(refused) is PenstockError
        assert str(refused) == f"the reply has {largest + 1} bytes, NATS carries {largest} here: ask for less"
        refused = await refusal(client, payload=bytes(largest))
        assert type(refused) is UserError
        assert f"t.x: a request of {largest} bytes" in str(refused)
        reply = await client.client.request("t.x", b"%d" % (largest + 1), timeout=15)
        assert (reply.headers or {})["Nats-Service-Error-Code"] == "413"


@pytest.mark.parametrize(
    ("headers", "raised", "line"),
    [
        ({"Nats-Service-Error-Code": "404", "Nats-Service-Error": "no such thing"}, PenstockError, "no such thing"),
        ({"Nats-Service-Error-Code": "418"}, PenstockError, "t.x: refused with code 418"),
        ({"Nats-Service-Error": "why not"}, PenstockError, "why not"),
        ({"Nats-Service-Error-Code": "400", "Nats-Service-Error": "a"}, UserError, "a"),
    ],
)
async def test_errors_of_other_services_are_errors(
    headers: dict[str, str], raised: type[PenstockError], line: str, link: Link, client: Link
) -> None:
    async def refuse(message: Msg) -> None:
        await link.client.publish(message.reply, b"ignored", headers=headers)

    await link.subscribe("t.x", refuse)
    await link.api("INFO")  # the server has the subscription
    refused = await refusal(client)
    assert type(refused) is raised
    assert str(refused) == line


# --- many at once ----------------------------------------------------------------------------------------------------


async def test_handlers_run_at_once_up_to_a_bound(link: Link, client: Link, eventually: Eventually) -> None:
    gate = Gate()
    replies: list[bytes] = []

    async def one(number: int) -> None:
        replies.append(await ask(client, "t.x", b"%d" % number, timeout_s=15))

    endpoints = endpoint(gate) | {"other": Endpoint(subject="t.other", handler=echo)}
    async with serve(link, "test", "1.0.0", endpoints, max_in_flight=3):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(one, number)
            await eventually(lambda: gate.num_waiting == 3)
            refused = await refusal(client)
            assert type(refused) is Transient
            assert str(refused) == "busy: 3 requests are under way on this node: try again"
            assert gate.num_waiting == 3
            assert await ask(client, "t.other", b"", timeout_s=15) == b"t.other "
            gate.may_pass.set()
        assert sorted(replies) == [b"0", b"1", b"2"]
        assert await ask(client, "t.x", b"again", timeout_s=15) == b"again"


async def test_of_two_that_serve_one_answers_each(link: Link, client: Link) -> None:
    answered: list[str] = []

    def by(name: str) -> Callable[[Request], Awaitable[bytes]]:
        async def handler(request: Request) -> bytes:
            answered.append(name)
            return b""

        return handler

    async with serve(link, "test", "1.0.0", endpoint(by("a"))):
        async with serve(client, "test", "1.0.0", endpoint(by("b"))):
            for _ in range(50):
                await ask(client, "t.x", b"", timeout_s=15)
            assert len(answered) == 50
            assert set(answered) == {"a", "b"}
        answered.clear()
        for _ in range(10):
            await ask(client, "t.x", b"", timeout_s=15)
        assert answered == ["a"] * 10


# --- being found -----------------------------------------------------------------------------------------------------


async def discovered(client: Link, subject: str, num: int, eventually: Eventually) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def on_reply(message: Msg) -> None:
        found.append(msgspec.json.decode(message.data))

    inbox = client.client.new_inbox()
    await client.subscribe(inbox, on_reply)
    await client.publish(subject, b"", inbox)
    await eventually(lambda: len(found) >= num)
    return found


async def test_it_is_found_with_its_endpoints(link: Link, client: Link, eventually: Eventually) -> None:
    endpoints = {
        "list": Endpoint(subject="t.list", handler=echo, description="What there is", metadata={"a": "b"}),
        "ask": Endpoint(subject="t.ask.*", handler=echo, queue="others"),
    }
    async with serve(link, "test", "1.2.3", endpoints) as one, serve(client, "test", "1.2.3", {}) as two:
        ids = {one.id, two.id}
        assert len(ids) == 2
        for subject in ("$SRV.PING", "$SRV.PING.test"):
            pings = [ServicePing.from_dict(ping) for ping in await discovered(client, subject, 2, eventually)]
            assert {ping.id for ping in pings} == ids
            assert {(ping.name, ping.version, ping.type) for ping in pings} == {
                ("test", "1.2.3", "io.nats.micro.v1.ping_response")
            }
        for subject in ("$SRV.INFO", "$SRV.INFO.test", f"$SRV.INFO.test.{one.id}"):
            answers = await discovered(client, subject, 1 if one.id in subject else 2, eventually)
            (info,) = (ServiceInfo.from_dict(answer) for answer in answers if answer["id"] == one.id)
            assert info.type == "io.nats.micro.v1.info_response"
            assert [(each.name, each.subject, each.queue_group, each.metadata) for each in info.endpoints] == [
                ("list", "t.list", "q", {"description": "What there is", "a": "b"}),
                ("ask", "t.ask.*", "others", {}),
            ]
        assert type(await refusal(client, "$SRV.PING.other")) is LinkError


async def test_its_figures_are_told(link: Link, client: Link, eventually: Eventually) -> None:
    gate = Gate()
    endpoints = {
        "echo": Endpoint(subject="t.echo", handler=echo),
        "fail": Endpoint(subject="t.fail", handler=raising(UserError("say what"))),
        "gate": Endpoint(subject="t.gate", handler=gate),
    }
    async with serve(link, "test", "1.0.0", endpoints, max_in_flight=1) as service:
        for _ in range(3):
            await ask(client, "t.echo", b"", timeout_s=15)
        await refusal(client, "t.fail")
        await client.publish("t.gate", b"")
        await eventually(lambda: gate.num_waiting == 1)
        await refusal(client, "t.gate")
        (answer,) = await discovered(client, f"$SRV.STATS.test.{service.id}", 1, eventually)
        gate.may_pass.set()
    stats = ServiceStats.from_dict(answer)
    assert stats.type == "io.nats.micro.v1.stats_response"
    figures = {each.name: each for each in stats.endpoints}
    assert [(each.num_requests, each.num_errors) for each in figures.values()] == [(3, 0), (1, 1), (2, 1)]
    assert figures["fail"].last_error == "400:say what"
    assert figures["gate"].last_error == "503:busy: 1 requests are under way on this node: try again"
    assert figures["echo"].last_error == ""
    assert figures["echo"].processing_time > 0
    assert figures["echo"].average_processing_time == figures["echo"].processing_time // 3
    assert figures["gate"].processing_time == 0


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_what_is_under_way_is_finished_at_the_end(
    link: Link, client: Link, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "FINISH_S", 1000)
    gate = Gate()
    replies: list[bytes] = []

    async def one() -> None:
        replies.append(await ask(client, "t.x", b"1", timeout_s=15))

    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            async with serve(link, "test", "1.0.0", endpoint(gate)):
                tasks.start_soon(one)
                await eventually(lambda: gate.num_waiting == 1)
                tasks.start_soon(open_when_nobody_serves, client, gate)
            assert gate.num_waiting == 0
    assert replies == [b"1"]
    assert gate.num_canceled == 0
    assert type(await refusal(client)) is LinkError
    assert type(await refusal(client, "$SRV.PING.test")) is LinkError


async def open_when_nobody_serves(client: Link, gate: Gate) -> None:
    said = ""
    while "nobody serves" not in said:
        try:
            await ask(client, "$SRV.PING.test", b"", timeout_s=0.2)
        except LinkError as error:
            said = str(error)
    assert type(await refusal(client)) is LinkError
    gate.may_pass.set()


async def test_no_request_is_lost_at_the_end(link: Link, client: Link, eventually: Eventually) -> None:
    """Whoever asks at that very time gets the reply or hears that nobody serves it."""
    num_begun = 0
    has_begun = anyio.Event()
    replies: list[Msg] = []

    async def count(request: Request) -> bytes:
        nonlocal num_begun
        num_begun += 1
        has_begun.set()
        return b"done"

    async def on_reply(message: Msg) -> None:
        replies.append(message)

    inbox = client.client.new_inbox()
    await client.subscribe(inbox, on_reply)
    async with serve(link, "test", "1.0.0", endpoint(count), max_in_flight=10_000):
        for _ in range(3000):
            await client.publish("t.x", b"", inbox)
        await has_begun.wait()
    await eventually(lambda: len(replies) == 3000)
    assert [reply.data for reply in replies].count(b"done") == num_begun
    assert {(reply.headers or {}).get("Status") for reply in replies if not reply.data} <= {"503"}


@pytest.mark.parametrize("canceled", [True, False])
async def test_what_cannot_be_finished_is_told_so(
    canceled: bool, link: Link, client: Link, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "FINISH_S", 0.05)
    gate = Gate()
    refused: list[PenstockError] = []

    async def one() -> None:
        refused.append(await refusal(client))

    async with (
        anyio.create_task_group() as asking,
        anyio.create_task_group() as tasks,
        serve(link, "test", "1.0.0", endpoint(gate)),
    ):
        asking.start_soon(one)
        await eventually(lambda: gate.num_waiting == 1)
        if canceled:
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()
    assert gate.num_canceled == 1
    assert type(refused[0]) is Transient
    assert str(refused[0]) == "the service is ending: try again"


async def test_what_is_raised_meanwhile_is_raised_as_it_is(link: Link, client: Link) -> None:
    with pytest.raises(UserError, match="of the body"):
        async with serve(link, "test", "1.0.0", endpoint(echo)):
            raise UserError("of the body")
    assert type(await refusal(client)) is LinkError


async def test_an_end_while_the_server_is_away_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "LEAVE_S", 0.1)
    monkeypatch.setattr(service_module, "REQUEST_TIMEOUT_S", 1000)
    gate = Gate()
    async with embedded(tmp_path) as url, connect(url) as link:
        server = status(tmp_path)["pid"]
        try:
            with anyio.fail_after(15):
                async with serve(link, "test", "1.0.0", endpoint(gate)):
                    os.kill(server, signal.SIGSTOP)
        finally:
            os.kill(server, signal.SIGCONT)


async def test_it_serves_again_after_the_server_died(tmp_path: Path, eventually: Eventually) -> None:
    async with (
        embedded(tmp_path) as url,
        connect(url) as link,
        connect(url) as client,
        serve(link, "test", "1.0.0", endpoint(echo)) as service,
    ):
        for turn in (1, 2):
            assert await ask(client, "t.x", b"", timeout_s=15) == b"t.x "
            os.kill(status(tmp_path)["pid"], signal.SIGKILL)
            await eventually(lambda turn=turn: link.num_reconnects == client.num_reconnects == turn)
        assert await ask(client, "t.x", b"", timeout_s=15) == b"t.x "
        (found,) = await discovered(client, "$SRV.PING.test", 1, eventually)
        assert found["id"] == service.id


async def test_what_is_asked_while_the_server_is_away_is_answered_when_it_is_back(
    tmp_path: Path, eventually: Eventually
) -> None:
    gate = Gate()
    replies: list[bytes] = []

    async with embedded(tmp_path) as url, connect(url) as link, connect(url) as client:

        async def one() -> None:
            replies.append(await ask(client, "t.x", b"1", timeout_s=15))

        async with serve(link, "test", "1.0.0", endpoint(gate)), anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await eventually(lambda: gate.num_waiting == 1)
            os.kill(status(tmp_path)["pid"], signal.SIGKILL)
            await eventually(lambda: link.num_reconnects == client.num_reconnects == 1)
            gate.may_pass.set()
    assert replies == [b"1"]


async def test_a_closed_link_serves_nobody(link: Link) -> None:
    await link.client.close()
    with pytest.raises(LinkError, match=r"cannot serve t\.x: nats: connection closed"):
        async with serve(link, "test", "1.0.0", endpoint(echo)):
            pytest.fail("it serves")


@pytest.mark.parametrize(
    ("name", "version", "each", "subject", "queue"),
    [
        ("a b", "1.0.0", "x", "t", "q"),
        ("test", "1.0", "x", "t", "q"),
        ("test", "v1.0.0", "x", "t", "q"),
        ("test", "1.0.0", "x.y", "t", "q"),
        ("test", "1.0.0", "x", "", "q"),
        ("test", "1.0.0", "x", "t x", "q"),
        ("test", "1.0.0", "x", "t..x", "q"),
        ("test", "1.0.0", "x", ">", "q"),
        ("test", "1.0.0", "x", "t.x*", "q"),
        ("test", "1.0.0", "x", "t", "q q"),
        ("test", "1.0.0", "x", "t", ""),
    ],
)
async def test_what_cannot_be_served_is_refused(
    name: str, version: str, each: str, subject: str, queue: str, link: Link
) -> None:
    endpoints = {each: Endpoint(subject=subject, handler=echo, queue=queue)}
    with pytest.raises(UserError):
        async with serve(link, name, version, endpoints):
            pytest.fail("it serves")


# --- whoever serves it is frozen, or goes down ---------------------------------------------------------------------


async def test_requests_go_round_one_who_is_frozen_and_who_thaws_does_nothing(link: Link, client: Link) -> None:
    frozen: list[Msg] = []
    done: list[bytes] = []

    async def keep(message: Msg) -> None:
        frozen.append(message)

    async def note(request: Request) -> bytes:
        done.append(request.data)
        return request.data

    subscription = await link.client.subscribe("t.x", queue="q", cb=keep)
    await link.api("INFO")  # the server has heard of it
    async with serve(link, "test", "1.0.0", endpoint(note)), anyio.create_task_group() as tasks:
        for number in range(32):
            tasks.start_soon(partial(ask, client, "t.x", b"%d" % number, timeout_s=30))
    assert sorted(done, key=int) == [b"%d" % number for number in range(32)]
    assert frozen
    for message in frozen:  # it thaws
        with pytest.raises(nats.errors.NoRespondersError):
            await link.client.request(message.reply, timeout=15, headers={service_module.OFFER: "frozen"})
    await subscription.unsubscribe()


async def asked(client: Link, answers: list[bytes]) -> None:
    answers.append(await ask(client, "t.x", b"?", timeout_s=30))


async def test_who_thaws_while_another_does_it_is_declined(link: Link, client: Link, eventually: Eventually) -> None:
    first: list[Msg] = []
    gate = Gate()

    async def keep(message: Msg) -> None:
        first.append(message)

    subscription = await link.client.subscribe("t.x", cb=keep)
    await link.api("INFO")  # the server has heard of it
    answers: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asked, client, answers)
        await eventually(lambda: first)
        await subscription.unsubscribe()
        async with serve(link, "test", "1.0.0", endpoint(gate)):
            await eventually(lambda: gate.num_waiting)
            said = await link.client.request(first[0].reply, timeout=15, headers={service_module.OFFER: "late"})
            assert said.data == service_module.DECLINED
            gate.may_pass.set()
            await eventually(lambda: answers)
    assert answers == [b"?"]


async def test_what_nothing_is_heard_of_is_asked_again(
    link: Link, client: Link, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(asking_module, "UNHEARD_S", 0.3)
    accepted = anyio.Event()

    async def take(message: Msg) -> None:
        said = await link.client.request(message.reply, timeout=15, headers={service_module.OFFER: "mortal"})
        assert said.data == service_module.ACCEPTED
        accepted.set()

    subscription = await link.client.subscribe("t.x", cb=take)
    await link.api("INFO")  # the server has heard of it
    answers: list[bytes] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asked, client, answers)
        await accepted.wait()
        await subscription.unsubscribe()
        async with serve(link, "test", "1.0.0", endpoint(echo)):
            await eventually(lambda: answers)
    assert answers == [b"t.x ?"]


async def test_what_takes_long_is_heard_of(link: Link, client: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "UNHEARD_S", 0.5)
    monkeypatch.setattr(service_module, "BEAT_S", 0.02)
    num_begun = 0

    async def slowly(request: Request) -> bytes:
        nonlocal num_begun
        num_begun += 1
        await anyio.sleep(2.0)
        return b"done"

    async with serve(link, "test", "1.0.0", endpoint(slowly)):
        assert await ask(client, "t.x", b"", timeout_s=30) == b"done"
    assert num_begun == 1
