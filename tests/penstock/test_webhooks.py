"""Webhooks, to a real HTTP server that fails at first: order, signatures, keys, restarts, and when it ends."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import anyio.abc
import msgspec
import pytest
import structlog
from conftest import Eventually
from receiver import Got, receiving
from sites import CATALOGUE, EACH, Site, site
from structlog.testing import capture_logs

from engine.node.gate import Gate
from engine.node.tasks import IsOver, Sink
from engine.run.registry import open_registry
from engine.spec.access import Access
from engine.spec.jobs import JobSpec
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.webhook_url import check_webhook, public_webhook
from penstock.posting import signature
from penstock.webhooks import FAILS, Pace, Webhooks
from streams import subjects
from streams.errors import UserError
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Refused, connect
from streams.wire.retention import ANSWERS

pytestmark = pytest.mark.anyio

SECRET = "the key"
QUICK = Pace(request_s=5.0, first_pause_s=0.01, max_pause_s=0.05, ack_wait_s=1.0, look_s=0.05)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Case:
    """A job with a webhook, and what it says."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.is_over = False
        self._seq = 0

    def spec(self, url: str) -> JobSpec:
        plan = make_plan(EACH, CATALOGUE, Machine(num_cores=2))
        return JobSpec(id="j", stream="s", plan=plan, spans={}, webhook=url)

    async def say(self, *answers: bytes) -> None:
        for answer in answers:
            self._seq = await self.ledger.append(subjects.answers("j", "s"), answer, self._seq, TRACE) or 0

    async def over(self) -> bool:
        return self.is_over

    @asynccontextmanager
    async def sending(self, url: str, pace: Pace = QUICK) -> AsyncIterator[anyio.Event]:
        """A node that sends, which may be lost again; the event says that it is done."""
        done = anyio.Event()

        async def send() -> None:
            await Webhooks(self.ledger, SECRET, pace, Random(1)).send(self.spec(url), self.over)
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            yield done
            tasks.cancel_scope.cancel()

    async def consumers(self) -> list[str]:
        return list((await self.ledger.link.api(f"CONSUMER.NAMES.{ANSWERS}"))["consumers"] or [])


@pytest.fixture
async def case(nats_url: str) -> AsyncIterator[Case]:
    async with connect(nats_url) as link:
        yield Case(await open_ledger(link))


async def test_every_answer_comes_once_in_order_though_the_receiver_fails_at_first(
    case: Case, eventually: Eventually
) -> None:
    replies = [503, 0, 500, 429, 307, 204, 400, 200]

    def reply(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        status = replies[number] if number < len(replies) else 204
        return status, {"location": "/elsewhere"} if status == 307 else {"retry-after": "0"}

    with receiving(reply) as receiver:
        async with case.sending(receiver.url) as done:
            await case.say(b'{"n":1}', b'{"n":2}', b'{"n":3}')
            await eventually(lambda: len(receiver.taken) == 3)
            assert not done.is_set()  # the job goes on
            await case.say(b'{"n":4}')
            await eventually(lambda: len(receiver.taken) == 4)
            case.is_over = True
            with anyio.fail_after(20):
                await done.wait()
        assert await case.consumers() == []
    assert receiver.taken == [b'{"n":%d}' % n for n in (1, 2, 3, 4)]
    assert [got.body for got in receiver.got] == [b'{"n":1}'] * 6 + [b'{"n":2}'] * 2 + [b'{"n":3}', b'{"n":4}']
    assert len({got.key for got in receiver.got}) == 4
    for got in receiver.got:
        assert got.path == "/hook"
        assert got.key == f"j-{got.body[5:6].decode()}"  # what stands at that sequence of the ledger
        assert got.headers["penstock-job"] == "j"
        assert got.headers["content-type"] == "application/json"
        assert got.headers["traceparent"] == TRACE
        assert_signed(got)


def assert_signed(got: Got) -> None:
    """As a receiver does it."""
    parts = dict(part.split("=", 1) for part in got.headers["penstock-signature"].split(","))
    assert abs(time.time() - int(parts["t"])) < 60
    wanted = hmac.new(SECRET.encode(), parts["t"].encode() + b"." + got.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(parts["v1"], wanted)


def test_a_signature_is_that_of_its_time_and_body() -> None:
    assert signature(b"k", 1, b"{}") == "t=1,v1=" + hmac.new(b"k", b"1.{}", hashlib.sha256).hexdigest()
    assert (
        len({signature(b"k", 1, b"{}"), signature(b"k", 2, b"{}"), signature(b"j", 1, b"{}"), signature(b"k", 1, b"")})
        == 4
    )


async def test_without_a_key_nothing_is_signed(
    case: Case, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_WEBHOOK_SECRET", raising=False)
    case.is_over = True
    with receiving() as receiver:
        await case.say(b"1")
        with anyio.fail_after(20):
            await Webhooks(case.ledger, pace=QUICK).send(case.spec(receiver.url), case.over)
            monkeypatch.setenv("PENSTOCK_WEBHOOK_SECRET", SECRET)
            await Webhooks(case.ledger, pace=QUICK).send(case.spec(receiver.url), case.over)
            await Webhooks(case.ledger, pace=QUICK).send(case.spec(""), case.over)
    assert len(receiver.got) == 2
    assert "penstock-signature" not in receiver.got[0].headers
    assert_signed(receiver.got[1])


async def test_a_restart_goes_on_with_the_answer_that_was_not_taken(case: Case, eventually: Eventually) -> None:
    failing = True

    def reply(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        return (500 if failing and body == b"3" else 204), {}

    with receiving(reply) as receiver:
        async with case.sending(receiver.url):
            await case.say(b"1", b"2", b"3", b"4")
            await eventually(lambda: sum(got.body == b"3" for got in receiver.got) >= 2)
        num_before = len(receiver.got)
        await case.say(b"5")  # while nobody sends
        failing = False
        async with case.sending(receiver.url):
            await eventually(lambda: len(receiver.taken) == 5)
        assert receiver.taken == [b"1", b"2", b"3", b"4", b"5"]
        assert receiver.got[num_before].body == b"3"
        keys = {got.body: got.key for got in receiver.got}
        assert all(keys[got.body] == got.key for got in receiver.got)


async def test_two_nodes_that_think_they_are_responsible_keep_the_order(case: Case, eventually: Eventually) -> None:
    answers = [b"%d" % n for n in range(20)]
    seen: set[bytes] = set()

    def fails_once(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        is_new = body not in seen
        seen.add(body)
        return (503 if is_new else 204), {}

    with receiving(fails_once) as receiver:
        async with case.sending(receiver.url), case.sending(receiver.url):
            await case.say(*answers)
            await eventually(lambda: len(receiver.taken) >= 20)
    assert receiver.taken == answers


async def test_an_answer_that_is_too_old_is_given_up_and_the_next_is_sent(case: Case, eventually: Eventually) -> None:
    def reply(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        return (204 if body == b"good" else 422), {}

    pace = msgspec.structs.replace(QUICK, max_age_s=1.0)
    with receiving(reply) as receiver, structlog.testing.capture_logs() as logs:
        async with case.sending(f"{receiver.url}?token=hidden", pace) as done:
            while not await case.consumers():  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await case.say(b"bad", b"good")
            await eventually(lambda: receiver.taken == [b"good"])
            case.is_over = True
            with anyio.fail_after(20):
                await done.wait()
    (line,) = [entry for entry in logs if entry["event"] == "webhook_gave_up"]
    assert (line["job"], line["answer"], line["reason"]) == ("j", 1, "422")
    assert line["num_attempts"] == sum(got.body == b"bad" for got in receiver.got) >= 2
    assert "hidden" not in str(logs)


async def test_gone_ends_it(case: Case) -> None:
    with receiving(lambda number, body: (410 if number == 1 else 204, {})) as receiver:
        async with case.sending(receiver.url) as done:
            await case.say(b"1", b"2", b"3")
            with anyio.fail_after(20):
                await done.wait()
    assert [got.body for got in receiver.got] == [b"1", b"2"]
    assert await case.consumers() == []


async def test_a_receiver_that_does_not_answer_is_given_so_long(case: Case, eventually: Eventually) -> None:
    hangs = threading.Event()

    async def hang(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            hangs.set()
            await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    pace = msgspec.structs.replace(QUICK, request_s=0.1)
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hang)
            async with case.sending(f"http://127.0.0.1:{port}/hook", pace):
                await case.say(b"1")
                await eventually(lambda: sum(entry["event"] == "webhook_refused" for entry in logs) >= 2)
            tasks.cancel_scope.cancel()
        await listener.aclose()
        async with case.sending(f"http://127.0.0.1:{port}/hook", pace):  # nobody listens there any more
            await eventually(lambda: any(entry.get("reason") == "ConnectError" for entry in logs))
    assert hangs.is_set()
    assert {entry["reason"] for entry in logs if entry["event"] == "webhook_refused"} == {
        "no answer within 0.1 s",
        "ConnectError",
    }


async def test_credentials_are_sent_and_never_told(case: Case, eventually: Eventually, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    with receiving(lambda number, body: (500 if number < 2 else 204, {})) as receiver:
        url = receiver.url.replace("http://", "http://user:p%40ss@") + "/token-in-path?key=hidden#part"
        with structlog.testing.capture_logs() as logs:
            async with case.sending(url):
                await case.say(b"1")
                await eventually(lambda: len(receiver.taken) == 1)
    assert receiver.got[0].path == "/hook/token-in-path?key=hidden"
    assert base64.b64decode(receiver.got[0].headers["authorization"].removeprefix("Basic ")) == b"user:p@ss"
    told = str(logs) + caplog.text
    for secret in ("p%40ss", "p@ss", "token-in-path", "hidden"):
        assert secret not in told


# --- as a node does it ---------------------------------------------------------------------------------------------


async def test_a_job_that_has_ended_is_still_delivered_by_whoever_is_there(
    nats_url: str, eventually: Eventually
) -> None:
    failing = True

    def reply(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        return (500 if failing else 204), {}

    def sink(ledger: Ledger, gate: Gate) -> Sink:
        return Webhooks(ledger, SECRET, QUICK, Random(1), gate=gate).send

    with receiving(reply) as receiver:
        async with site(nats_url, sink=sink) as here:
            await here.publish([1, 2, 3], end=True)
            job = await here.submit(webhook=receiver.url)
            with anyio.fail_after(20):
                while (await here.registry.job(job)).state == "running" or not receiver.got:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        failing = False
        async with site(nats_url, sink=sink) as here:
            assert (await here.registry.job(job)).webhook == receiver.url
            await eventually(lambda: len(set(receiver.taken)) == 3)
            with anyio.fail_after(20):
                while (await here.registry.job(job)).webhook:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            with pytest.raises(Refused):
                await here.ledger.link.api(f"CONSUMER.INFO.{ANSWERS}.webhook-{job}")
    once = dict.fromkeys(receiver.taken)  # what was on its way as the first node went may have been taken there, too
    assert [msgspec.json.decode(body)["output"]["value"] for body in once] == [1, 2, 3]


async def test_a_job_says_that_its_receiver_takes_nothing_and_when_it_does_again(nats_url: str) -> None:
    failing = True

    def reply(number: int, body: bytes) -> tuple[int, dict[str, str]]:
        return (500 if failing else 204), {}

    def sink(ledger: Ledger, gate: Gate) -> Sink:
        async def send(spec: JobSpec, is_over: IsOver) -> None:
            registry = await open_registry(ledger.link)
            await Webhooks(ledger, SECRET, QUICK, Random(1), gate=gate, registry=registry).send(spec, is_over)

        return send

    async def until_said(here: Site, job: str, detail: str) -> None:
        with anyio.fail_after(20):
            while (await here.registry.job(job)).detail != detail:  # noqa: ASYNC110 - another task says it
                await anyio.sleep(0.01)

    with receiving(reply) as receiver, capture_logs() as logs:
        async with site(nats_url, sink=sink) as here:
            await here.publish([1, 2, 3], end=True)
            job = await here.submit(webhook=receiver.url)
            await until_said(here, job, f"{FAILS} (500)")
            failing = False
            await until_said(here, job, "")
    said = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert (said.count("webhook_fails"), said.count("webhook_taken_again")) == (1, 1)


async def test_answers_for_others_are_sent_only_where_the_node_may_connect(
    nats_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sink(ledger: Ledger, gate: Gate) -> Sink:
        return Webhooks(ledger, SECRET, QUICK, Random(1), gate=gate).send

    with receiving() as receiver, capture_logs() as logs:
        async with site(nats_url, sink=sink, access=Access()) as here:
            await here.publish([1, 2, 3], end=True)
            refused = await here.http.post("/v1/jobs", json={"stream": "s", "webhook": receiver.url})
            assert refused.status_code == 400
            assert "webhook: 127.0.0.1 is not open to clients" in refused.json()["detail"]
            await here.submit(webhook=receiver.url.replace("127.0.0.1", "localhost"))  # a name may lead anywhere
            await eventually(lambda: any(line["event"] == "not_let_out" for line in logs))
        assert receiver.got == []


# --- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/x", "http://host"),
        ("https://user:secret@host.example:8443/token?key=1#f", "https://host.example:8443"),
        ("https://[::1]:9/x", "https://[::1]:9"),
        ("HTTPS://Host", "https://host"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    check_webhook(url)
    assert public_webhook(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        *("", "host/x", "ftp://host/secret", "file:///secret", "http://", "http:///secret", "http://:80/secret"),
        *("http://host:0/secret", "http://host:x/secret", "http://host:99999/secret", "http://[::1/secret"),
        *("http://host/a secret", "http://host/secret\nX: y", "http://höst/secret", "http://host/" + "secret" * 400),
    ],
)
def test_what_no_answer_can_be_sent_to_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UserError, match=r"^webhook: ") as error:
        check_webhook(url)
    assert "secret" not in str(error.value)
