"""What doctor says of the room there is, and of a service that runs."""

from pathlib import Path

import pytest

from engine.decide.watching import SourceState
from engine.run.registry import NodeStatus, open_registry
from engine.spec.stream import StreamSpec
from penstock.cli import checkup, doctor
from streams.wire import store as stores
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

pytestmark = pytest.mark.anyio
MIB = 1024**2


@pytest.mark.parametrize(
    ("room_bytes", "ok", "found", "advice"),
    [
        (100_000 * MIB, True, "may take 97.7 GiB of its disk", ""),
        (768 * MIB, True, "may take 768 MiB of its disk: new streams share it out, 44.2 GiB are wanted", "free some"),
        (75 * MIB, False, "may take 75 MiB of its disk", "at least 256 MiB: free some"),
    ],
)
async def test_doctor_says_how_much_the_store_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int, ok: bool, found: str, advice: str
) -> None:
    monkeypatch.setattr(stores, "room_bytes", lambda store: room_bytes)
    said = await doctor._room(None, tmp_path / "none yet")
    assert (said.ok, said.found) == (ok, f"{tmp_path / 'none yet'} {found}")
    assert advice in said.advice
    assert bool(advice) == bool(said.advice)


async def test_doctor_says_what_a_given_server_leaves(nats_url: str) -> None:
    said = await doctor._room(nats_url, Path("unused"))
    assert said.ok
    assert said.found.endswith(" has no limit of its own")


async def found(url: str | None, store: Path) -> dict[str, checkup.Finding]:
    return {each.what: each for each in [*await checkup.of_store(url, store), *await checkup.of_what_runs(url, store)]}


async def test_a_service_that_does_well_is_said_to(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert await found(None, store) == {}
    async with embedded(store) as url, connect(url) as link:
        await open_ledger(link)
        registry = await open_registry(link)
        await registry.say_alive(NodeStatus(id="n", host="h", pid=1, num_cores=1, http="http://127.0.0.1:8080"))
        said = await found(None, store)
        assert {what for what, each in said.items() if not each.ok} == set()
        assert set(said) == {"disk", "permissions", "keeper", "storing", "clock", "nodes", "reached"}


async def test_what_is_wrong_with_a_service_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    async with embedded(store) as url, connect(url) as link:
        await open_ledger(link)
        registry = await open_registry(link)
        await registry.declare(StreamSpec(name="gate"))
        await registry.say_source(SourceState(stream="gate", state="gone", since_ns=1, error="404 Not Found"))
        await registry.say_alive(NodeStatus(id="n", host="h", pid=1, num_cores=1, http="http://192.0.2.7:8080"))
        await registry.say_alive(NodeStatus(id="m", host="h", pid=2, num_cores=1, signs="aabbccdd"))
        store.chmod(0o755)
        (store / "server.json").chmod(0o644)
        monkeypatch.setattr(stores, "full_disk", lambda store: f"the disk of {store} is full")
        monkeypatch.setattr(checkup, "MAX_OFFSET_S", -1.0)
        said = await found(None, store)
    bad = {what for what, each in said.items() if not each.ok}
    assert bad == {"disk", "permissions", "clock", "webhooks", "stream gate", "HTTP is reached"}
    assert said["permissions"].advice == f"chmod go= {store} {store}/server.json"
    assert "by n not at all; by m with key aabbccdd" in said["webhooks"].found
    assert "404 Not Found" in said["stream gate"].found
    assert "http://192.0.2.7:8080 can be reached" in said["HTTP is reached"].found
    assert all(each.advice for each in said.values() if not each.ok)


async def test_a_server_that_has_no_node_or_does_not_answer_is_said(nats_url: str, tmp_path: Path) -> None:
    said = await found(nats_url, tmp_path)
    assert (said["nodes"].ok, said["nodes"].advice) == (False, "start `penstock serve`")
    (service,) = await checkup.of_what_runs("nats://127.0.0.1:9", tmp_path)
    assert not service.ok
    assert "no NATS server answers" in service.found
