"""One connection to a source that cannot be opened twice: a thread that reads it and hands over what it read.

FFmpeg's calls block and cannot be interrupted but by their own timeouts. So they run in a thread of their own; whoever
takes what it reads waits no longer than it likes, and may turn away at any time: the thread then ends with the call it
is in. Delivery guarantee: what is read is handed over once and in order, up to the end or the loss of the connection;
what was not taken when `abandon` is called is dropped. Bounded: what waits to be taken, by MAX_WAITING_BYTES.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from streams.errors import PenstockError, UserError
from streams.media.demux import Demux, join
from streams.media.probe import BAD_DEMUX, Opening, Readable, open_media, reason_of
from streams.media.short_groups import ShortGroups
from streams.media.timestamps import Piece
from streams.records import Track

MAX_WAITING_BYTES = 32 << 20
MAX_WAITING = 20_000  # pieces
MAX_HOLE_NS = 10_000_000_000  # a live source that is silent for longer is lost: its clock has jumped
MAX_TRIAL_S = 5.0  # until the first picture of a live source
LOOK_S = 0.1  # how often it is asked whether to stop
GRACE_S = 5.0  # beyond its timeouts, until a thread counts as stuck
RAW_GROUP_S = 1.0
RAW = frozenset({"rawvideo"})


@dataclass(frozen=True, slots=True)
class Opened:
    """The source gives media. Media time begins at `start_ns`."""

    tracks: tuple[Track, ...]
    origin_ns: int
    start_ns: int
    is_finite: bool  # it has an end, and that is no loss


@dataclass(frozen=True, slots=True)
class Read:
    """A piece, and what had to be repaired or was left out before it."""

    piece: Piece
    flaws: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """There is nothing more to come. `reason`: why, where it was not the orderly end."""

    reason: str | None
    flaws: tuple[str, ...] = ()
    error: UserError | None = None  # where the source is at fault from the beginning


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has come for LOOK_S."""


class _Bytes:
    """A source of bytes as FFmpeg reads it. What goes wrong ends the bytes and is kept: FFmpeg would ask again."""

    def __init__(self, source: Readable) -> None:
        self.name = source.name
        self.failed: PenstockError | None = None
        self._source = source

    def read(self, max_bytes: int = -1, /) -> bytes:
        if self.failed is None:
            try:
                return self._source.read(max_bytes)
            except PenstockError as error:
                self.failed = error
        return b""

    def give_up(self, reason: str) -> None:
        self._source.give_up(reason)


class Connection:
    """Begins to read at once. `start_ns` is asked, in the thread that reads, when the first packet is there."""

    def __init__(self, opening: Opening, *, start_ns: Callable[[], int], is_live: bool, group_s: float | None) -> None:
        self._bytes = None if isinstance(opening.source, str) else _Bytes(opening.source)
        self._opening = replace(opening, source=self._bytes or opening.source)
        self._start_ns = start_ns
        self._is_live = is_live
        self._group_s = group_s
        self._changed = threading.Condition()
        self._waiting: deque[Opened | Read | Ended] = deque()
        self._num_bytes = 0
        self._is_abandoned = False
        self._crash: BaseException | None = None
        self._alive_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"reading {opening.name}", daemon=True)
        self._thread.start()

    def events(self, stop: threading.Event) -> Iterator[Opened | Read | Quiet | Ended]:
        """What happens, and that nothing does, until it ends or `stop` is set."""
        while not stop.is_set():
            event: Opened | Read | Quiet | Ended = Quiet()
            with self._changed:
                if not self._waiting:
                    self._changed.wait(LOOK_S)
                if self._waiting:
                    event = self._waiting.popleft()
                    if isinstance(event, Read):
                        self._num_bytes -= len(event.piece.packet.data)
                    self._changed.notify_all()
                elif self._is_stuck():
                    event = Ended("it does not answer, not even with an error")
            if isinstance(event, Ended) and self._crash is not None:
                raise self._crash
            yield event
            if isinstance(event, Ended):
                return

    def abandon(self) -> None:
        """Nothing more is taken. Returns at once; the thread ends with the call it is in."""
        with self._changed:
            self._is_abandoned = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._bytes is not None:
            self._bytes.give_up("reading was stopped")

    @property
    def is_running(self) -> bool:
        """Whether its thread is still in some call."""
        return self._thread.is_alive()

    def _is_stuck(self) -> bool:
        timeouts_s = self._opening.timeouts_s  # opening takes the first of them twice at most
        return timeouts_s is not None and time.monotonic() > self._alive_s + 2 * max(timeouts_s) + GRACE_S

    def _put(self, event: Opened | Read | Ended) -> bool:
        """Hand over, waiting for room; false where nobody takes it any more."""
        with self._changed:
            while not self._is_abandoned and (self._num_bytes > MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING):
                self._changed.wait()  # for whoever takes or abandons
            self._alive_s = time.monotonic()
            if self._is_abandoned:
                return False
            self._waiting.append(event)
            if isinstance(event, Read):
                self._num_bytes += len(event.piece.packet.data)
            self._changed.notify_all()
            return True

    # --- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            ended = self._read()
        except UserError as error:
            cause = error.__cause__
            ended = Ended(reason_of(cause) if isinstance(cause, BAD_DEMUX) else str(error), error=error)
        except BAD_DEMUX as error:
            ended = Ended(reason_of(error))
        except BaseException as error:
            self._crash, ended = error, Ended("")
        if self._bytes is not None:
            if self._bytes.failed is not None:
                ended = replace(ended, reason=str(self._bytes.failed), error=None)
            self._bytes.give_up(ended.reason or "it was read to its end")
        self._put(ended)

    def _read(self) -> Ended:
        live: dict[str, Any] = {"max_wait_s": MAX_TRIAL_S, "max_hole_ns": MAX_HOLE_NS} if self._is_live else {}
        with open_media(self._opening) as container:
            demux = join(container, self._opening.name, start_ns=self._start_ns, arrived_ns=self._arrived_ns, **live)
            groups = self._short_groups(demux)
            is_finite = (container.size or 0) > 0 or (container.format.name == "hls" and bool(container.duration))
            tracks = demux.tracks if groups is None else _with(demux.tracks, groups.index, groups.track)
            self._put(Opened(tracks, demux.origin_ns, demux.start_ns, is_finite))
            pieces = demux.pieces() if groups is None else groups.through(demux.pieces())
            for piece in pieces:
                if not self._put(Read(piece, _taken(demux.flaws))):
                    break
            return Ended(reason_of(demux.failed) if demux.failed else None, _taken(demux.flaws))

    def _arrived_ns(self) -> int:
        self._alive_s = time.monotonic()
        return time.time_ns() if self._is_live else 0

    def _short_groups(self, demux: Demux) -> ShortGroups | None:
        """What encodes the video anew, where that is asked for or raw pictures have to be."""
        for index, track in enumerate(demux.tracks):
            group_s = self._group_s or (RAW_GROUP_S if track.codec in RAW else None)
            if track.kind == "video" and group_s:
                return ShortGroups(index, track, round(group_s * 1e9), demux.flaws)
        return None


def _with(tracks: tuple[Track, ...], index: int, track: Track) -> tuple[Track, ...]:
    return (*tracks[:index], track, *tracks[index + 1 :])


def _taken(flaws: list[str]) -> tuple[str, ...]:
    """The flaws, which are thereby passed on."""
    taken = tuple(flaws)
    flaws.clear()
    return taken
