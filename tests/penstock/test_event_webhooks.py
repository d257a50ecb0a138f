"""Webhooks of streams, to a real HTTP server that fails at first: the last state, at least once."""

from collections.abc import AsyncIterator
from random import Random

import anyio
import msgspec
import pytest
from conftest import Eventually
from receiver import receiving
from structlog.testing import capture_logs

from engine.decide.watching import SourceState, State
from engine.node.gate import Gate
from engine.run import registry as registries
from engine.run.registry import Registry, open_registry
from engine.spec.access import Access
from engine.spec.stream import StreamSpec
from penstock.event_webhooks import EventWebhooks, key_of
from penstock.posting import fingerprint
from penstock.webhooks import Pace
from streams.wire.ledger import open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
QUICK = Pace(request_s=5.0, first_pause_s=0.01, max_pause_s=0.05)


@pytest.fixture
async def registry(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    monkeypatch.setattr(registries, "LOOK_S", 0.2)
    async with connect(nats_url) as link:
        await open_ledger(link)
        yield await open_registry(link)


def state(what: State, since_ns: int = 1, error: str = "") -> SourceState:
    return SourceState(stream="cam", state=what, since_ns=since_ns, error=error, node="n1")


def sender(registry: Registry, gate: Gate | None = None) -> EventWebhooks:
    return EventWebhooks(registry, "the key", QUICK, Random(1), gate)


async def test_each_state_comes_once_it_stands_and_again_until_it_is_taken(
    registry: Registry, eventually: Eventually
) -> None:
    with receiving(lambda number, body: (503 if number < 2 else 204, {})) as receiver:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender(registry).send, StreamSpec(name="cam", webhook=receiver.url))
            await registry.say_source(state("live"))
            await eventually(lambda: len(receiver.taken) == 1)
            await registry.say_source(state("silent", 2, "no route to host"))
            await eventually(lambda: len(receiver.taken) == 2)
            await registry.say_source(state("silent", 2, "no route to host"))  # as it was
            await registry.say_source(state("live", 3))
            await eventually(lambda: len(receiver.taken) == 3)
            tasks.cancel_scope.cancel()
    said = [msgspec.json.decode(body, type=SourceState) for body in receiver.taken]
    assert [(each.state, each.error) for each in said] == [("live", ""), ("silent", "no route to host"), ("live", "")]
    assert len({got.key for got in receiver.got}) == 3
    assert receiver.got[0].key == receiver.got[2].key == key_of(state("live"))
    assert all("penstock-signature" in got.headers for got in receiver.got)
    assert {got.headers["penstock-stream"] for got in receiver.got} == {"cam"}


async def test_of_what_changed_while_the_receiver_was_away_only_the_last_is_sent(
    registry: Registry, eventually: Eventually
) -> None:
    is_away = True
    with receiving(lambda number, body: (503 if is_away else 204, {})) as receiver:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender(registry).send, StreamSpec(name="cam", webhook=receiver.url))
            for number in range(1, 6):
                await registry.say_source(state("gone", number))
            await eventually(lambda: receiver.got and receiver.got[-1].key == key_of(state("gone", 5)))
            is_away = False
            await eventually(lambda: len(receiver.taken) == 1)
            tasks.cancel_scope.cancel()
    assert msgspec.json.decode(receiver.taken[0], type=SourceState).since_ns == 5


async def test_gone_ends_it_and_what_may_not_be_reached_is_not(registry: Registry) -> None:
    await registry.say_source(state("live"))
    with receiving(lambda number, body: (410, {})) as receiver:
        with anyio.fail_after(10):
            await sender(registry).send(StreamSpec(name="cam", webhook=receiver.url))
        assert len(receiver.got) == 1
        gate = Gate(Access(), trusts_registry=False)
        async with gate.open(), anyio.create_task_group() as tasks:
            with capture_logs() as logs:
                tasks.start_soon(sender(registry, gate).send, StreamSpec(name="cam", webhook=receiver.url))
                with anyio.fail_after(10):
                    while not any(line["event"] == "webhook_refused" for line in logs):  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        assert len(receiver.got) == 1
        assert not any(receiver.url in str(line) for line in logs)


def test_a_fingerprint_tells_keys_apart_and_is_no_key() -> None:
    assert fingerprint("") == ""
    assert len({fingerprint("a"), fingerprint("b"), fingerprint("a" * 1000)}) == 3
    assert fingerprint("a") == fingerprint("a")
    assert len(fingerprint("a")) == 8
