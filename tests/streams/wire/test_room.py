"""Room: limits that fit by rule; and against real servers, an account's limit, a server's, and a disk of 1 GB."""

import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import disks
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import UserError
from streams.wire import keeper, retention, room
from streams.wire import store as stores
from streams.wire.kv import open_bucket
from streams.wire.ledger import open_ledger
from streams.wire.link import Refused, connect
from streams.wire.retention import Retention, retain
from streams.wire.room import MIN_ROOM_BYTES, attempts, made_to_fit, mebibytes, room_left, shared_out
from streams.wire.server import embedded, nats_server_version

MIB, GIB = 1024**2, 1024**3
WANTED = retention._limits(Retention())
KINDS = sorted(WANTED)


@pytest.mark.parametrize(
    ("available_bytes", "media_bytes", "gaps_bytes"),
    [
        (100 * GIB, 16 * GIB, GIB // 4),
        (sum(WANTED.values()), 16 * GIB, GIB // 4),
        (sum(WANTED.values()) // 2, 8 * GIB, GIB // 8),
        (GIB, 388_245_631, 6_066_337),
        (MIN_ROOM_BYTES, 97_061_407, 1_516_584),
    ],
)
def test_what_there_is_is_shared_out(available_bytes: int, media_bytes: int, gaps_bytes: int) -> None:
    shares = shared_out(WANTED, available_bytes)
    assert (shares["media"], shares["gaps"]) == (media_bytes, gaps_bytes)


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 2**45), max_size=8), st.integers(0, 2**46))
def test_shares_fit_and_keep_their_proportions(wanted: dict[str, int], available_bytes: int) -> None:
    total = sum(wanted.values())
    try:
        shares = shared_out(wanted, available_bytes)
    except UserError as error:
        assert available_bytes < min(total, MIN_ROOM_BYTES)
        assert "\n" not in str(error)
        return
    assert shares.keys() == wanted.keys()
    assert all(0 <= share <= wanted[name] for name, share in shares.items())
    assert all(share > 0 for name, share in shares.items() if wanted[name])
    if total <= available_bytes:
        assert shares == wanted
    else:
        assert sum(shares.values()) <= available_bytes + len(wanted)
        assert all(abs(share - wanted[name] * available_bytes / total) <= 2 for name, share in shares.items())


@given(st.integers(1, 2**46), st.none() | st.integers(-(2**40), 2**46))
def test_attempts_go_down_to_the_least_and_end(total_bytes: int, left_bytes: int | None) -> None:
    tried = list(attempts(total_bytes, left_bytes))
    assert tried == sorted(set(tried), reverse=True)
    assert len(tried) < 60
    assert all(bytes_ <= total_bytes for bytes_ in tried)
    assert all(bytes_ >= min(total_bytes, MIN_ROOM_BYTES) for bytes_ in tried)
    if left_bytes is None:
        assert tried[0] == total_bytes
        assert tried[-1] == min(total_bytes, MIN_ROOM_BYTES)
    else:
        assert all(bytes_ <= max(0, left_bytes) for bytes_ in tried)


def test_sizes_are_said_as_people_read_them() -> None:
    assert (mebibytes(MIN_ROOM_BYTES), mebibytes(3 * GIB // 2)) == ("256 MiB", "1.5 GiB")


# --- a given server -------------------------------------------------------------------------------------------


@asynccontextmanager
async def given_server(folder: Path, limits: str) -> AsyncIterator[str]:
    """A nats-server that somebody else runs, with these lines in its configuration."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    (folder / "given.conf").write_text(f'host: "127.0.0.1"\nport: {port}\n{limits}\n')
    binary, _ = nats_server_version()
    command = [binary, "-c", folder / "given.conf"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220 - it returns
        try:
            with anyio.fail_after(10):
                while True:
                    try:
                        await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                        break
                    except OSError:
                        await anyio.sleep(0.01)
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()


async def limits_at(url: str) -> dict[str, int]:
    async with connect(url) as link:
        return {kind: (await link.api(f"STREAM.INFO.PENSTOCK_{kind.upper()}"))["config"]["max_bytes"] for kind in KINDS}


def by_server(max_bytes: int) -> str:
    return f'jetstream {{ store_dir: "js", max_file_store: {max_bytes} }}'


def by_account(max_bytes: int) -> str:
    return f"""
        jetstream {{ store_dir: "js", max_file_store: {64 * GIB} }}
        accounts {{ A {{ jetstream: {{ max_file: {max_bytes} }}, users: [{{ user: a, password: b }}] }} }}
        no_auth_user: a
    """


@pytest.mark.anyio
@pytest.mark.parametrize("limited", [by_server, by_account])
async def test_a_given_server_with_little_room(tmp_path: Path, limited: Callable[[int], str]) -> None:
    async with given_server(tmp_path, limited(GIB)) as url:
        with anyio.fail_after(15):
            async with connect(url) as link, connect(url) as other:
                with structlog.testing.capture_logs() as logs:
                    opened = await open_ledger(link)
                assert not [log for log in logs if log["event"] == "nats_retry"]
                assert len([log for log in logs if log["event"] == "less_room_than_wanted"]) == 1
                await open_ledger(other)
                await (await open_bucket(link, "b")).put("key", b"value")
                await opened.put("penstock.media.s.0", b"x")
        limits = await limits_at(url)
        assert GIB // 2 < sum(limits.values()) <= GIB * 15 // 16
        assert all(abs(limits[kind] / limits["media"] - WANTED[kind] / WANTED["media"]) < 1e-3 for kind in KINDS)
        async with connect(url) as link:
            await retain(link, Retention(max_age_s=3600.0))  # it wants 44 GiB again
            config = (await link.api("STREAM.INFO.PENSTOCK_MEDIA"))["config"]
        assert config["max_age"] == 3600 * 10**9
        assert GIB // 2 < sum((await limits_at(url)).values()) <= GIB


@pytest.mark.anyio
@pytest.mark.parametrize("limited", [by_server, by_account])
async def test_a_given_server_with_too_little_room_says_so_at_once(
    tmp_path: Path, limited: Callable[[int], str]
) -> None:
    async with given_server(tmp_path, limited(100 * MIB)) as url:
        with anyio.fail_after(15):
            async with connect(url) as link:
                with pytest.raises(
                    UserError, match="too little room for what Penstock keeps, at least 256 MiB: "
                ) as no:
                    await open_ledger(link)
                assert "\n" not in str(no.value)
                assert not (await link.api("STREAM.NAMES"))["streams"]
                await open_ledger(link, Retention(max_media_bytes=8 * MIB, max_results_bytes=8 * MIB))
    assert url in str(no.value)


@pytest.mark.anyio
async def test_what_is_missing_takes_what_the_others_left(tmp_path: Path) -> None:
    async with given_server(tmp_path, by_server(20 * GIB)) as url, connect(url) as link:
        await link.api("STREAM.CREATE.PENSTOCK_MEDIA", retention._config("media", 16 * GIB, Retention()))
        await open_ledger(link)
        limits = await limits_at(url)
        assert limits["media"] == 16 * GIB
        assert 2 * GIB < sum(limits.values()) - limits["media"] <= 4 * GIB * 15 // 16


@pytest.mark.anyio
async def test_a_stream_without_room_is_refused_at_once(tmp_path: Path) -> None:
    async with given_server(tmp_path, by_account(GIB)) as url, connect(url) as link:
        assert await room_left(link) == GIB
        with anyio.fail_after(5), pytest.raises(Refused):
            await link.api("STREAM.CREATE.A", {"name": "A", "max_bytes": 2 * GIB}, final={10047, 10028, 10122})
        config = {"name": "A", "subjects": ["a"], "max_bytes": MIB}
        assert (await made_to_fit(link, [config]))[0]["max_bytes"] == MIB
        assert await room_left(link) == GIB - MIB


@pytest.mark.anyio
async def test_a_dead_maker_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAKING_S", 0.2)
    async with given_server(tmp_path, by_server(2 * GIB)) as url, connect(url) as link:
        await link.api(f"STREAM.CREATE.{room.MAKING}", {"name": room.MAKING, "subjects": ["somebody"]})
        with anyio.fail_after(10):
            await open_ledger(link)
        assert room.MAKING not in (await link.api("STREAM.NAMES"))["streams"]


@pytest.mark.anyio
async def test_many_who_open_it_at_once_all_find_it(tmp_path: Path) -> None:
    async with given_server(tmp_path, by_server(2 * GIB)) as url:

        async def open_it() -> None:
            async with connect(url) as link:
                await open_ledger(link)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(open_it)
        assert sum((await limits_at(url)).values()) <= 2 * GIB


# --- a store of our own -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_store_on_a_disk_of_1_gb(small_disk: Path) -> None:
    store = small_disk / "store"
    with anyio.fail_after(30):
        async with embedded(store) as url, connect(url) as link:
            opened = await open_ledger(link)
            await opened.put("penstock.media.s.0", b"kept")
        limits = await limits_of(store)
        assert GIB * 3 // 8 < sum(limits.values()) <= GIB * 3 // 4 * 15 // 16
        disks.resize(small_disk, "4g")  # it has room now: what stands keeps its limits, the server's goes up
        async with embedded(store) as url, connect(url) as link:
            assert (await (await open_ledger(link)).get("penstock.media.s.0")) is not None
            assert await limits_at(url) == limits
            await retain(link, Retention(max_media_bytes=GIB, max_results_bytes=GIB // 8))
            assert (await limits_at(url))["media"] == GIB
        disks.resize(small_disk, "1g")  # and less than it reserved: it takes its streams back all the same
        async with embedded(store) as url, connect(url) as link:
            stored = await (await open_ledger(link)).get("penstock.media.s.0")
            assert stored is not None
            assert (await limits_at(url))["media"] == GIB


async def limits_of(store: Path) -> dict[str, int]:
    async with embedded(store) as url:
        return await limits_at(url)


@pytest.mark.anyio
async def test_a_disk_that_is_too_small_is_said_at_once(small_disk: Path) -> None:
    disks.resize(small_disk, "200m")
    with anyio.fail_after(10), pytest.raises(UserError) as refused:
        async with embedded(small_disk / "store"):
            pass
    assert str(refused.value).startswith(f"{small_disk / 'store'} may take 150 MiB, ")
    assert "at least 256 MiB: free some, or name a folder on another disk with --store" in str(refused.value)


@pytest.mark.anyio
async def test_an_identity_of_a_larger_disk_binds_nobody(small_disk: Path) -> None:
    store = small_disk / "store"
    store.mkdir(mode=0o700)
    (store / keeper.IDENTITY).write_text(json.dumps({"token": "ab" * 24, "max_file_store_bytes": 900 * GIB}))
    with anyio.fail_after(20):
        async with embedded(store) as url, connect(url) as link:
            assert "ab" * 24 in url
            await open_ledger(link)
            assert sum((await limits_at(url)).values()) < GIB


def test_a_store_never_gets_less_than_its_streams_reserved(tmp_path: Path) -> None:
    free = stores.room_bytes(tmp_path / "nowhere" / "yet")
    assert stores.max_store_bytes(tmp_path) == stores.room_bytes(tmp_path) > 0
    for name, content in (
        ("A", json.dumps({"max_bytes": 2 * free})),
        ("B", '{"max_bytes": -1}'),
        ("C", "[]"),
        ("D", "{"),
    ):
        folder = tmp_path / "jetstream" / "$G" / "streams" / name
        folder.mkdir(parents=True)
        (folder / "meta.inf").write_text(content)
    assert stores.reserved_bytes(tmp_path) == 2 * free
    assert stores.max_store_bytes(tmp_path) > 2 * free
