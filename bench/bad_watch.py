"""Throwing bad inputs in a child process that is watched: a crash, a hang or a flood of memory is the input's, and the
bench goes on behind it.

The child says in memory that both share which input it is at, since when, and what became of those before. The parent
looks every LOOK_S; it ends a child that has been at one input for too long or has grown too much, notes that as a
defect of this input, and starts another child at the next one.
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from streams.errors import first_error

Outcome = Literal["refused", "accepted"]

LOOK_S = 0.1
MAX_S = 5.0  # for one input
MAX_GROWTH_BYTES = 1 << 30  # of what is resident, for one input
MAX_ADDRESSES_BYTES = 12 << 30  # of a child: the machine is others' as well
MAX_KILLS = 4  # of children, or of what they throw at, by one target; then it is passed over
MAX_LINE = 300
RUNS, RUINED = 0, 7  # exit codes of a child: it has done its part; what it threw at is of no use any more

_STATE = struct.Struct("=qddqqq")  # index, when it began, the longest so far, refused, accepted, longest message
_ROOTS = tuple(
    f"{Path(__file__).resolve().parent.parent / part}/" for part in ("streams", "engine", "operators", "penstock")
)


class Case(NamedTuple):
    """A bad input: what it is thrown at, and its bytes."""

    target: str
    data: bytes


class Defect(Exception):
    """What was thrown did something that it must not. `kind`: crash, exception, hang, memory, message, status, node."""

    def __init__(self, kind: str, what: str, where: str = "") -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        self.where = where


class Ruined(Defect):
    """One after which nothing more can be thrown before all is made anew."""


class Kind(Protocol):
    """One kind of bad input. An input follows from the seed and its index alone."""

    name: str
    max_s: float  # that the parent leaves it for one input
    batch: int  # inputs between two calls of `check`

    def case(self, index: int) -> Case: ...

    def open(self) -> None:
        """Called in each child, first."""

    def throw(self, case: Case) -> Outcome:
        """Throw one. Raises Defect; whatever else it raises is one."""

    def check(self) -> None:
        """Whether what was thrown at is still well. Raises Defect."""

    def close(self) -> None: ...


class Note(NamedTuple):
    """A defect and the input it came of; of `check`, the inputs since the last one."""

    at: int
    first: int
    target: str
    kind: str
    what: str
    where: str


class Tally(NamedTuple):
    """What became of all inputs of a kind."""

    refused: int
    accepted: int
    slowest_s: float
    longest_message: int
    max_rss_bytes: int
    notes: list[Note]
    passed_over: list[str]  # targets


def one_line(said: str | BaseException) -> None:
    """Raises Defect unless a message is exactly one line."""
    text = str(said)
    if not text.strip() or len(text.splitlines()) != 1:
        where = explained(said)[1] if isinstance(said, BaseException) else ""
        raise Defect("message", f"a message of {len(text.splitlines())} lines: {text[:MAX_LINE]!r}", where)
    _Messages.longest = max(_Messages.longest, len(text))


class _Messages:
    longest = 0


def watched(kind: Kind, num: int, folder: Path, say: Callable[[str], None]) -> Tally:
    """Throw the first `num` inputs of a kind."""
    log = folder / f"{kind.name}.jsonl"
    log.touch()
    kills: Counter[str] = Counter()
    notes: list[Note] = []
    sums = [0, 0]
    slowest_s, longest, max_rss, at = 0.0, 0, 0, 0
    while at < num:
        skipped = frozenset(target for target, times in kills.items() if times >= MAX_KILLS)
        child = _Child(kind, at, num, log, skipped)
        note = child.wait(say)
        index, _, slow_s, refused, accepted, message = child.state
        sums = [sums[0] + refused, sums[1] + accepted]
        slowest_s, longest, max_rss = max(slowest_s, slow_s), max(longest, message), max(max_rss, child.max_rss)
        at = index + 1
        if note is not None:
            notes.append(note)
            kills[note.target] += 1
        elif child.has_ruined:
            kills[json.loads(log.read_text().splitlines()[-1])["target"]] += 1
    notes += [Note(**json.loads(line)) for line in log.read_text().splitlines()]
    passed_over = sorted(target for target, times in kills.items() if times >= MAX_KILLS)
    return Tally(sums[0], sums[1], slowest_s, longest, max_rss, notes, passed_over)


def explained(error: BaseException) -> tuple[str, str]:
    """An exception in one line, and the line of the product that it came through last."""
    error = first_error(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_ROOTS)] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else ""
    said = " ".join(str(error).split())[:MAX_LINE]
    return f"{type(error).__name__}: {said}", where


class _Child:
    """A forked process that throws inputs from `first` on."""

    def __init__(self, kind: Kind, first: int, end: int, log: Path, skipped: frozenset[str]) -> None:
        self._kind = kind
        self._memory = mmap.mmap(-1, _STATE.size)
        self.max_rss = 0
        self.has_ruined = False
        self._set(first, time.monotonic())
        sys.stderr.flush()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.setsid()
                code = self._run(first, end, log, skipped)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    @property
    def state(self) -> tuple[int, float, float, int, int, int]:
        return _STATE.unpack(self._memory[: _STATE.size])

    # --- in the parent -----------------------------------------------------------------------------------------

    def wait(self, say: Callable[[str], None]) -> Note | None:
        """Until it has ended, or has to be; what it died of, if that is a defect."""
        started_bytes, said_s = rss_bytes(self._pid), time.monotonic()
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            index, since_s = self.state[:2]
            if pid:
                self._end_group()
                code = os.waitstatus_to_exitcode(status)
                if code in (RUNS, RUINED):
                    self.has_ruined = code == RUINED
                    return None
                died = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                return self._note("crash", f"the process died of {died}")
            grown = rss_bytes(self._pid)
            self.max_rss = max(self.max_rss, grown)
            waited_s = time.monotonic() - since_s
            if waited_s > self._kind.max_s:
                self._end_group()
                return self._note("hang", f"nothing came of it within {self._kind.max_s:g} s")
            if grown - started_bytes > MAX_GROWTH_BYTES:
                self._end_group()
                return self._note("memory", f"{(grown - started_bytes) >> 20} MiB more are resident")
            if time.monotonic() - said_s > 10.0:
                said_s = time.monotonic()
                say(f"  {self._kind.name}: at {index}")
            time.sleep(LOOK_S)

    def _note(self, kind: str, what: str) -> Note:
        index = self.state[0]
        return Note(index, index, self._kind.case(index).target, kind, what, "")

    def _end_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    # --- in the child ------------------------------------------------------------------------------------------

    def _run(self, first: int, end: int, log: Path, skipped: frozenset[str]) -> int:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES_BYTES, MAX_ADDRESSES_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        counts: Counter[Outcome] = Counter()
        slowest_s, checked = 0.0, first
        with log.open("a") as file:

            def note(at: int, since: int, target: str, kind: str, what: str, where: str) -> None:
                file.write(json.dumps(Note(at, since, target, kind, what, where)._asdict()) + "\n")
                file.flush()

            self._kind.open()
            try:
                for index in range(first, end):
                    began_s = time.monotonic()
                    self._set(index, began_s, slowest_s, counts["refused"], counts["accepted"])
                    case = self._kind.case(index)
                    if case.target in skipped:
                        continue
                    thrown = _thrown(self._kind, case, counts)
                    if thrown is not None:
                        note(index, index, case.target, thrown.kind, thrown.what, thrown.where)
                    slowest_s = max(slowest_s, time.monotonic() - began_s)
                    if thrown is None and (index + 1 == end or (index + 1) % self._kind.batch == 0):
                        thrown = _checked(self._kind)
                        if thrown is not None:
                            note(index, checked, "check", thrown.kind, thrown.what, thrown.where)
                        checked = index + 1
                    self._set(index, time.monotonic(), slowest_s, counts["refused"], counts["accepted"])
                    if isinstance(thrown, Ruined):
                        return RUINED
            finally:
                self._kind.close()
        return RUNS

    def _set(self, index: int, since_s: float, slowest_s: float = 0.0, refused: int = 0, accepted: int = 0) -> None:
        self._memory[: _STATE.size] = _STATE.pack(index, since_s, slowest_s, refused, accepted, _Messages.longest)


def _thrown(kind: Kind, case: Case, counts: Counter[Outcome]) -> Defect | None:
    try:
        counts[kind.throw(case)] += 1
    except Defect as defect:
        return defect
    except Exception as error:
        return Defect("exception", *explained(error))
    return None


def _checked(kind: Kind) -> Defect | None:
    try:
        kind.check()
    except Defect as defect:
        return defect
    return None


def rss_bytes(pid: int) -> int:
    """What is resident of a process; 0 where it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0
