"""Keeps one nats-server alive for one store, for as long as anybody uses the store.

A process of its own, in its own session, started by `streams.wire.server`. It knows the standard library and
`streams.wire.store` only and runs without site-packages, so that it is up in some twenty milliseconds. What holds it
together is three locks, which the kernel releases however their holder dies:

- `users.lock`: each user holds it shared; who gets it exclusively knows that nobody uses the store and may leave.
- `keeper.lock`: held by the keeper and, through inheritance, by its nats-server: a new keeper starts only when both
  are dead, so two servers never write to one store.
- on Linux the kernel kills nats-server when its keeper dies. Elsewhere a nats-server whose keeper was killed lives on:
  it is still shared, and it is stopped by hand (`pid` in server.json).

A server that dies, or that answers nobody for UNANSWERED_S, is started again on its port, later each time it dies, and
without end once it has answered; what ends that is a server that could not be started for GIVE_UP_S. A disk that is
full is no reason to give up: the start waits for room. nats-server itself, once it has met a full disk, refuses records
for good, also when there is room again: then it is restarted.

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
from contextlib import suppress
from pathlib import Path
from typing import Any

from streams.wire.store import (
    LOG,
    STATUS,
    full_disk,
    greeting,
    has_room_again,
    last_words,
    max_store_bytes,
    server_name,
    status,
)

USERS_LOCK = "users.lock"
KEEPER_LOCK = "keeper.lock"
IDENTITY = "identity.json"
CONFIG = "nats-server.conf"

POLL_S = 0.02  # how soon a death, or the last user's leaving, is seen
STARTING_POLL_S = 0.005
STOP_S = 10.0  # what nats-server gets to close its files before it is killed
FIRST_DELAY_S, MAX_DELAY_S = 0.05, 5.0  # before a server that died twice within RESTART_WINDOW_S is started again
RESTART_WINDOW_S = 60.0
GIVE_UP_S = 120.0  # of starts of which none led to an answer
LOOK_S = 1.0  # how often disk, log and server are looked at
UNANSWERED_S = 20.0  # after which a server that runs and answers nobody is killed
MAX_LOG_READ_BYTES = 1 << 20
MAX_STARTS = 3  # before it has answered once: a free port may be taken between choosing and using it
PR_SET_PDEATHSIG = 1
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


def restart_delay_s(deaths_s: Sequence[float], now_s: float) -> float:
    """How long to wait before the next start: nothing after the first death within RESTART_WINDOW_S, then from
    FIRST_DELAY_S doubling to MAX_DELAY_S."""
    recent = sum(now_s - death_s < RESTART_WINDOW_S for death_s in deaths_s)
    return 0.0 if recent <= 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(recent - 2, 16))


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
        with suppress(OSError):
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
    """Run the server, again and on the same port if it ends, until nobody uses it. Raises GivenUp."""
    port = 0
    deaths_s: list[float] = []
    answered_s: float | None = None  # when it last did
    while True:
        if answered_s is None:
            port = wanted_port or _free_port(previous_port)
        elif not _room_to_start(here, users):
            return
        watch = Watch(here, _start(here, binary, port, lock), port, users)
        try:
            end = watch.run()
        finally:
            _stop(watch.server)
            (here / STATUS).unlink(missing_ok=True)
        if try_lock(users):
            return
        now_s = time.monotonic()
        answered_s = now_s if watch.has_answered else answered_s
        _say(f"nats-server {end or f'has ended with {watch.server.returncode}'}")
        if end == _RESTARTED:
            continue
        deaths_s = [*deaths_s[-32:], now_s]
        if answered_s is None and len(deaths_s) >= (1 if wanted_port else MAX_STARTS):
            raise GivenUp(f"nats-server does not start: {last_words(here)}")
        if answered_s is not None and now_s > answered_s + GIVE_UP_S and not full_disk(here):
            raise GivenUp(f"nats-server has not started for {GIVE_UP_S:.0f} s: {last_words(here)}")
        if not _pause(users, restart_delay_s(deaths_s, now_s)):
            return


def _pause(users: int, delay_s: float) -> bool:
    """Wait so long; False as soon as nobody uses the server any more."""
    until_s = time.monotonic() + delay_s
    while time.monotonic() < until_s:
        if try_lock(users):
            return False
        time.sleep(POLL_S)
    return True


def _room_to_start(here: Path, users: int) -> bool:
    """Wait until the disk has room for a server to start; False once nobody uses it any more."""
    while full_disk(here):
        if try_lock(users):
            return False
        time.sleep(POLL_S)
    return True


_RESTARTED = "had met a full disk, where there is room again, and is restarted"
_SILENT = f"answered nobody for {UNANSWERED_S:.0f} s and is killed"


class Watch:
    """A server that was started, while it runs."""

    def __init__(self, here: Path, server: "subprocess.Popen[bytes]", port: int, users: int) -> None:
        self.server = server
        self.has_answered = False
        self._here, self._port, self._users = here, port, users
        self._look_s = 0.0
        self._answered_s = 0.0
        self._log_at = _size_of(here / LOG)
        self._met_full_disk = False

    def run(self) -> str:
        """Return when the server has died, nobody uses it or it has to be ended, and then why. That it answers is
        published when it does."""
        while self.server.poll() is None and not try_lock(self._users):
            if not self.has_answered and (info := greeting(self._port, server_name(self._here))):
                self.has_answered, self._answered_s = True, time.monotonic()
                self._publish(info["version"])
                _hang_up()
            elif self.has_answered and time.monotonic() > self._look_s:
                if end := self._look():
                    return end
                self._look_s = time.monotonic() + LOOK_S
            time.sleep(POLL_S if self.has_answered else STARTING_POLL_S)
        return ""

    def _publish(self, version: str) -> None:
        url = f"nats://{_identity(self._here)['token']}@127.0.0.1:{self._port}"
        pids = {"pid": self.server.pid, "keeper_pid": os.getpid()}
        _write(self._here / STATUS, {"url": url, "port": self._port, **pids, "version": version})

    def _look(self) -> str:
        """Why it has to be ended; nothing where it does well."""
        if full_disk(self._here) or self._has_said_so():
            self._met_full_disk = True
        if self._met_full_disk and has_room_again(self._here):
            return _RESTARTED
        began_s = time.monotonic()
        if greeting(self._port, server_name(self._here)):
            self._answered_s = time.monotonic()
        elif began_s > self._answered_s + UNANSWERED_S:
            self.server.kill()
            return _SILENT
        return ""

    def _has_said_so(self) -> bool:
        """Whether its log has told of a full disk, or of a quota that is used up, since the last look."""
        size = _size_of(self._here / LOG)
        begin, self._log_at = (self._log_at if size >= self._log_at else 0), size  # it may have been begun anew
        if size == begin:
            return False
        with (self._here / LOG).open("rb") as log:
            log.seek(max(begin, size - MAX_LOG_READ_BYTES))
            said = log.read(MAX_LOG_READ_BYTES)
        return b"no space left on device" in said or b"disk quota exceeded" in said


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _start(here: Path, binary: str, port: int, lock: int) -> "subprocess.Popen[bytes]":
    configuration = CONFIGURATION.format(
        name=server_name(here),
        port=port,
        log=LOG,
        token=_identity(here)["token"],
        max_file_store_bytes=max_store_bytes(here),
    )
    _write_text(here / CONFIG, configuration)
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
    _write_text(path, json.dumps(content) + "\n")


def _write_text(path: Path, text: str) -> None:
    """All of it, or an OSError and what stood there before."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def _say(line: str) -> None:
    with suppress(OSError), Path(LOG).open("a") as log:  # where the disk is full nothing is said
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
