"""Keeps one nats-server alive for one store, for as long as anybody uses the store.

A process of its own, in its own session, started by `streams.wire.server`. It knows the standard library only and runs
without site-packages, so that it is up in some twenty milliseconds. What holds it together is three locks, which the
kernel releases however their holder dies:

- `users.lock`: each user holds it shared; who gets it exclusively knows that nobody uses the store and may leave.
- `keeper.lock`: held by the keeper and, through inheritance, by its nats-server: a new keeper starts only when both
  are dead, so two servers never write to one store.
- on Linux the kernel kills nats-server when its keeper dies. Elsewhere a nats-server whose keeper was killed lives on:
  it is still shared, and it is stopped by hand (`pid` in server.json).

Until the server answers, standard output tells the starter why it does not; its end says that all is decided.
"""

import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STATUS = "server.json"
LOG = "nats-server.log"
USERS_LOCK = "users.lock"
KEEPER_LOCK = "keeper.lock"
IDENTITY = "identity.json"
CONFIG = "nats-server.conf"

POLL_S = 0.02  # how soon a death, or the last user's leaving, is seen
STARTING_POLL_S = 0.005
STOP_S = 10.0  # what nats-server gets to close its files before it is killed
ANSWER_S = 2.0
MAX_RESTARTS = 6
RESTART_WINDOW_S = 60.0
MAX_STARTS = 3  # before it has answered once: a free port may be taken between choosing and using it
PR_SET_PDEATHSIG = 1
SPARE_BYTES = 16 * 1024**2
_TOKEN = re.compile(r"[0-9a-f]{48}")

# Below the range clients' own ports come from (32768 on Linux, 49152 elsewhere): while the server is restarting, nobody
# is given its port by chance, not even a client that tries to reach it.
FIRST_PORT, NUM_PORTS = 16000, 16384

CONFIGURATION = """\
# Written by penstock at each start; changes here are lost.
server_name: {name}
host: "127.0.0.1"
port: {port}
authorization {{ token: "{token}" }}
max_payload: 8MB
write_deadline: "10s"
log_file: "{log}"
logfile_size_limit: 8MB
logfile_max_num: 3
jetstream {{
  store_dir: "."
  max_file_store: {max_file_store_bytes}
  max_memory_store: 256MB
  sync_interval: "10s"
}}
"""


def server_name(store: Path) -> str:
    """What the server of this store calls itself: another store's server, or a copied store's, differs."""
    place = store.stat()
    return f"penstock-{place.st_dev:x}-{place.st_ino:x}"


def greeting(port: int, name: str) -> dict[str, Any] | None:
    """The INFO of the server listening on the port, if it has that name and JetStream is up; else None."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
            line = connection.makefile("rb").readline(65536)
    except OSError:
        return None
    try:
        info = json.loads(line.removeprefix(b"INFO "))
    except ValueError:
        return None
    as_expected = isinstance(info, dict) and info.get("server_name") == name and info.get("jetstream")
    return info if as_expected else None


def status(store: Path) -> dict[str, Any]:
    """What server.json says: url, port, pid, keeper_pid, version; or failed; or nothing. It may be out of date."""
    try:
        said = json.loads((store / STATUS).read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def last_words(store: Path) -> str:
    """The last line of the server's log that reports a failure, else its last line."""
    try:
        lines = (store / LOG).read_text(errors="replace").splitlines()[-50:]
    except OSError:
        return "it left no log"
    failures = [line for line in lines if any(mark in line for mark in ("[FTL]", "[ERR]", "panic:", "nats-server: "))]
    return (failures or lines or ["its log is empty"])[-1].strip()


def room_bytes(store: Path) -> int:
    """What the store may take of its disk: three quarters of what is free there or taken by the store already."""
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    disk = os.statvfs(place)
    return (disk.f_bavail * disk.f_frsize + _taken_bytes(store)) * 3 // 4


def reserved_bytes(store: Path) -> int:
    """What the store's streams have reserved of it, each its `max_bytes`."""
    reserved = 0
    for path in store.glob("jetstream/*/streams/*/meta.inf"):
        try:
            most = json.loads(path.read_text())["max_bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        reserved += most if isinstance(most, int) and most > 0 else 0
    return reserved


def max_store_bytes(store: Path) -> int:
    """The server's limit, looked at anew at each start, for disks fill and stores move; never below what its streams
    have reserved, for then it could not take them back, and a sixteenth for what reserves nothing."""
    reserved = reserved_bytes(store)
    return max(room_bytes(store), reserved * 17 // 16 + SPARE_BYTES if reserved else 0)


def _taken_bytes(store: Path) -> int:
    taken = 0
    for folder, _, names in os.walk(store / "jetstream"):
        for name in names:
            try:
                taken += (Path(folder) / name).stat().st_blocks * 512
            except OSError:  # it went just now
                continue
    return taken


def restart_delay_s(deaths_s: Sequence[float], now_s: float) -> float | None:
    """How long to wait before the next start: nothing after the first death, then doubling from 50 ms to 2 s.

    None after more than MAX_RESTARTS deaths within RESTART_WINDOW_S: give up.
    """
    recent = sum(now_s - death_s < RESTART_WINDOW_S for death_s in deaths_s)
    if recent > MAX_RESTARTS:
        return None
    return 0.0 if recent <= 1 else min(2.0, 0.05 * 2 ** (recent - 2))


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if it is free; on failure a lock held before on this descriptor is lost."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


# --- the rest runs in the keeper's process, in the store's folder ---------------------------------------------


class GivenUp(Exception):
    """nats-server cannot be kept running; the message says why."""


def _keep(binary: str, wanted_port: int) -> None:
    here = Path.cwd()
    users, lock = open_lock(here / USERS_LOCK), open_lock(here / KEEPER_LOCK)
    if not _won(here, users, lock):
        return
    previous_port = status(here).get("port", 0)  # left by a keeper that was killed
    (here / STATUS).unlink(missing_ok=True)
    try:
        _supervise(here, binary, wanted_port, previous_port, users, lock)
    except GivenUp as reason:
        _say(str(reason))
        _write(here / STATUS, {"failed": str(reason), "keeper_pid": os.getpid()})
        raise
    os.close(lock)  # before users.lock: who joins now finds nobody keeping the store


def _won(here: Path, users: int, lock: int) -> bool:
    """Wait to become the keeper; False once another one serves, or nobody waits any more."""
    while not try_lock(lock):
        said = status(here)
        if (said.get("url") and greeting(said["port"], server_name(here))) or try_lock(users):
            return False
        time.sleep(STARTING_POLL_S)
    return True


def _supervise(here: Path, binary: str, wanted_port: int, previous_port: int, users: int, lock: int) -> None:
    """Run the server, again and on the same port if it dies, until nobody uses it. Raises GivenUp."""
    port = 0
    deaths_s: list[float] = []
    answered = False
    while True:
        if not answered:
            port = wanted_port or _free_port(previous_port)
        server = _start(here, binary, port, lock)
        try:
            answered = _watch(here, server, port, users) or answered
        finally:
            _stop(server)
            (here / STATUS).unlink(missing_ok=True)
        if try_lock(users):
            return
        deaths_s.append(time.monotonic())
        _say(f"nats-server has ended with {server.returncode}")
        if not answered and len(deaths_s) >= (1 if wanted_port else MAX_STARTS):
            raise GivenUp(f"nats-server does not start: {last_words(here)}")
        delay_s = restart_delay_s(deaths_s, time.monotonic())
        if delay_s is None:
            raise GivenUp(f"nats-server died {MAX_RESTARTS + 1} times within {RESTART_WINDOW_S:.0f} s")
        time.sleep(delay_s)


def _watch(here: Path, server: "subprocess.Popen[bytes]", port: int, users: int) -> bool:
    """Return when the server has died or nobody uses it; say whether it answered, which is published when it does."""
    answered = False
    while server.poll() is None and not try_lock(users):
        if not answered and (info := greeting(port, server_name(here))):
            answered = True
            url = f"nats://{_identity(here)['token']}@127.0.0.1:{port}"
            pids = {"pid": server.pid, "keeper_pid": os.getpid()}
            _write(here / STATUS, {"url": url, "port": port, **pids, "version": info["version"]})
            _hang_up()
        time.sleep(POLL_S if answered else STARTING_POLL_S)
    return answered


def _start(here: Path, binary: str, port: int, lock: int) -> "subprocess.Popen[bytes]":
    configuration = CONFIGURATION.format(
        name=server_name(here),
        port=port,
        log=LOG,
        token=_identity(here)["token"],
        max_file_store_bytes=max_store_bytes(here),
    )
    (here / CONFIG).write_text(configuration)
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    keeper_pid = os.getpid()

    def die_with_keeper() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != keeper_pid:
            os._exit(1)

    with (here / LOG).open("ab") as log:
        return subprocess.Popen(
            [binary, "-c", CONFIG],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            preexec_fn=die_with_keeper,
        )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        _say(f"nats-server did not stop within {STOP_S:.0f} s and is killed")
        server.kill()
        server.wait()


def _free_port(previous_port: int) -> int:
    """The port of last time if it is free, so that clients of a killed keeper find the new one; else any."""
    for port in [previous_port] * bool(previous_port) + [_random_port() for _ in range(100)]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise GivenUp(f"no free port between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS - 1}")


def _random_port() -> int:
    return FIRST_PORT + int.from_bytes(os.urandom(4), "big") % NUM_PORTS


def _identity(here: Path) -> dict[str, Any]:
    """The store's token, decided once."""
    try:
        identity = json.loads((here / IDENTITY).read_text())
    except (OSError, ValueError):
        identity = None
    if not (isinstance(identity, dict) and _TOKEN.fullmatch(str(identity.get("token")))):
        identity = {"token": os.urandom(24).hex()}
        _write(here / IDENTITY, identity)
    return identity


def _write(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content) + "\n")
    draft.replace(path)


def _say(line: str) -> None:
    with Path(LOG).open("a") as log:
        log.write(f"[{os.getpid()}] {time.strftime('%Y/%m/%d %H:%M:%S')} [KEEPER] {line}\n")


def _hang_up() -> None:
    """Close the line to the starter, which takes it that all is well; what Python has to say goes to the log."""
    with Path(LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def main(store: str, binary: str, port: str) -> int:
    """Become a process nobody waits for, and keep the store's server."""
    if os.fork():
        return 0
    os.umask(0o077)
    os.chdir(store)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _keep(binary, int(port))
    except (GivenUp, OSError) as reason:
        print(reason, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
