"""Where media come from: files, folders, standard input, bytes of a client, URLs of live sources, capture devices.

`read` gives the segments of any of them, in order; it blocks, so it runs in a thread. Delivery guarantee: what a
recording holds is given once and in order, up to its end. A live source is given as it comes: when it is lost, what had
been gathered is given as a segment, it is tried again with growing pauses, and one gap stands for the time away, by
which media time advances. The gap is given when the source is back, or before, once it has been silent for `silence_s`:
who waits for what comes next need not wait for ever. So it is where a source was not reached in the first place.

The pauses grow from `first_pause_s` by doubling up to `max_pause_s`, each times a random factor of 0.5 to 1.5, so that
many readers of one source do not come back at once.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from streams.errors import UserError
from streams.media.addresses import Place, is_live, kind_of, place_of, public_url
from streams.media.connection import Connection, Ended, Opened, Quiet, Read
from streams.media.formats import STREAMABLE, Kind, whitelists
from streams.media.pipe import Pipe
from streams.media.probe import NOTHING_CAME, Opening
from streams.media.segmenter import MAX_FLAWS, Cutter, segments, target_ns_of
from streams.records import EndOfStream, Gap, Segment

__all__ = ["Kind", "Pipe", "SourceSettings", "is_live", "kind_of", "public_url", "read", "read_bytes"]

State = Literal["connecting", "reading", "lost"]
Through = Callable[[Place], Place]
OnState = Callable[[State, str], None]

PATIENCE_NS = 2_000_000_000  # a track of a live stream that says nothing is waited for as long
MAX_LEFT = 3  # connections given up whose thread is still in some call, until it is waited for them to end
STEADY_S = 10.0  # a connection that held as long ended the trouble before it
FROM_NOW = {"live_start_index": "-1"}  # HLS: not what has been read before the loss


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a source is opened, and how long a live one is waited for."""

    open_timeout_s: float = 10.0
    read_timeout_s: float = 10.0  # a live source that gives nothing for as long is lost
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0
    first_open_s: float | None = None  # raise UserError where it was never reached within this; None: go on trying
    options: dict[str, str] = {}  # of FFmpeg, such as {"rtsp_transport": "udp"}


DEFAULTS = SourceSettings()


def read(
    url: str,
    stream: str,
    *,
    live: bool,
    stop: threading.Event,
    target_s: float = 5.0,
    first_index: int = 0,
    start_ns: int = 0,
    transcode_gop_s: float | None = None,
    settings: SourceSettings = DEFAULTS,
    random: Random | None = None,
    on_state: OnState = lambda state, detail: None,
    through: Through | None = None,
    silence_s: float | None = None,
) -> Iterator[Segment | Gap | EndOfStream]:
    """The segments of a source, numbered from `first_index`, media time beginning at `start_ns`.

    `url`: a path, a folder (its media files in the order of their names, as one stream), `-` (standard input), a URL
    (file, http, https, rtsp, rtsps, rtmp, rtmps, srt, udp) or `device:/dev/video0`, `device:alsa:default`. Files,
    folders, standard input and whatever has an end give EndOfStream last. With `live`, a source that is lost is
    connected to again: a Gap, then its segments. They bear the time at which they were received. `transcode_gop_s`:
    encode video anew with keyframes so often. `on_state` is called in the reading thread as things change. `through` is
    asked before every connection how to make it; it raises UserError where it may not be made. `silence_s`: how long
    nothing may come of a live source; then what was gathered is given, and the gap.

    When `stop` is set, what was gathered is given as a last segment, and that is all, within a fraction of a second; a
    file gives no such part of a segment, for its segments are the same every time.
    Raises UserError at once where the URL is wrong; while reading, where what is no live source cannot be read, or a
    live one was not reached within `settings.first_open_s`.
    """
    course = _Course(stream, target_ns_of(target_s), stop, transcode_gop_s, live, first_index, start_ns)
    course.on_state, course.silence_s = on_state, silence_s
    place = place_of(url)
    through = through or _as_it_is
    if place.paths:
        course.is_live = False
        return _recorded(through(place), course)
    if live and place.is_live:
        return _live(place, course, settings, random or Random(), through)
    return _once(through(place).opening(settings.open_timeout_s, settings.read_timeout_s, settings.options), course)


def _as_it_is(place: Place) -> Place:
    return place


def read_bytes(
    pipe: Pipe,
    stream: str,
    *,
    live: bool,
    stop: threading.Event,
    target_s: float = 5.0,
    first_index: int = 0,
    start_ns: int = 0,
    transcode_gop_s: float | None = None,
    format: str | None = None,
) -> Iterator[Segment | EndOfStream]:
    """As `read`, of bytes fed into `pipe`: any container that can be read as it comes (MPEG-TS, Matroska, FLV,
    fragmented MP4, Ogg, WAV, ADTS), cut anywhere. Closing the pipe ends the stream. `format`: FFmpeg's name of the
    container, where the bytes do not show it. Raises UserError, while reading, where they are no such media. However
    it ends, the pipe is given up: who feeds it then meets PipeClosed."""
    course = _Course(stream, target_ns_of(target_s), stop, transcode_gop_s, live, first_index, start_ns)
    return _once(Opening(pipe, pipe.name, format, {"format_whitelist": STREAMABLE}), course)


# --- following one connection ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Course:
    """A stream as far as it has been read, over one connection after another."""

    stream: str
    target_ns: int
    stop: threading.Event
    group_s: float | None
    is_live: bool
    index: int
    start_ns: int
    flaws: list[str] = field(default_factory=list)  # of what gave no further segment
    ended: Ended | None = None  # how the last connection ended; None where reading was stopped
    opened: Opened | None = None  # None where the last connection gave nothing
    captured_ns: int = 0  # of the last segment
    last_s: float = 0.0  # when the end of what was given had been received
    lost: str | None = None  # why the connection before was lost, or why there was none
    silence_s: float | None = None
    is_gap_open: bool = False  # the gap for the time away has been given
    was_reached: bool = False
    left: list[Connection] = field(default_factory=list)  # those whose thread may be in some call still
    on_state: OnState = lambda state, detail: None
    told: tuple[str, str] = ("", "")

    def follow(self, opening: Opening) -> Iterator[Segment | Gap]:
        """The segments of one connection; after a loss first the gap, once there is something again."""
        self.ended = self.opened = None
        cutter: Cutter | None = None
        heard_s = time.monotonic()
        connection = Connection(opening, start_ns=self._resumes_ns, is_live=self.is_live, group_s=self.group_s)
        try:
            for event in connection.events(self.stop):
                if isinstance(event, Quiet):
                    if self.due_in_s() == 0.0:
                        yield self.open_gap(opening.name)
                    if self._is_silent(cutter, time.monotonic() - heard_s):
                        self.ended = Ended(f"nothing came for {time.monotonic() - heard_s:.0f} s")
                        break
                    continue
                heard_s = time.monotonic()
                if isinstance(event, Opened):
                    was_away = self.was_reached and self.lost is not None
                    if was_away and event.is_finite:  # it ended while we were away, and would begin anew
                        self.ended = Ended(None)
                        return
                    self.opened = event
                    self.tell("reading", opening.name)
                    if self.is_gap_open:
                        self.start_ns = event.start_ns
                    elif self.lost is not None and self.was_reached:
                        yield self._gap(opening.name, self.lost, event.start_ns)
                    self.lost, self.is_gap_open, self.was_reached = None, False, True
                    cutter = self._cutter(event)
                elif isinstance(event, Read) and cutter is not None:
                    cutter.flaws += event.flaws
                    yield from cutter.push(event.piece)
                elif isinstance(event, Ended):
                    self.ended = event
                    (cutter or self).flaws.extend(event.flaws)
            if cutter is not None:
                yield from cutter.finish()
                self.index, self.start_ns, self.captured_ns = cutter.index, cutter.start_ns, cutter.captured_ns
                self.flaws += cutter.flaws
                self.last_s = time.monotonic() - _since_s(cutter)
        finally:
            connection.abandon()
            self.left = [each for each in (*self.left, connection) if each.is_running]

    def tell(self, state: State, detail: str) -> None:
        """Say how things stand, if that is new: a listener that nobody calls has nothing new to say."""
        if (state, detail) != self.told and not (state == "connecting" and self.told[0] == "lost"):
            self.told = (state, detail)
            self.on_state(state, detail)

    def end(self) -> EndOfStream:
        """The orderly end of the stream."""
        stopped = [f"reading stopped: {self.ended.reason}"] if self.ended and self.ended.reason else []
        flaws = (*stopped, *self.flaws)[:MAX_FLAWS]
        return EndOfStream(stream=self.stream, num_segments=self.index, duration_ns=self.start_ns, flaws=flaws)

    def _cutter(self, opened: Opened) -> Cutter:
        flaws, self.flaws = self.flaws, []
        return Cutter(
            self.stream,
            opened.tracks,
            opened.origin_ns,
            self.target_ns,
            flaws=flaws,
            index=self.index,
            start_ns=opened.start_ns,
            captured_ns=self.captured_ns,
            patience_ns=PATIENCE_NS if self.is_live else None,
        )

    def _resumes_ns(self) -> int:
        """Where media time goes on: by as much later as the source was away."""
        is_away = self.is_gap_open or (self.lost is not None and self.was_reached)
        return self.start_ns + (round((time.monotonic() - self.last_s) * 1e9) if is_away else 0)

    def _is_silent(self, cutter: Cutter | None, quiet_s: float) -> bool:
        """Whether a connection that holds counts as lost."""
        return self.silence_s is not None and cutter is not None and quiet_s > self.silence_s

    def due_in_s(self) -> float | None:
        """How long until the gap for the time away is to be given; None where there is none to give."""
        if self.silence_s is None or self.lost is None or self.is_gap_open:
            return None
        return max(0.0, self.last_s + self.silence_s - time.monotonic())

    def open_gap(self, name: str) -> Gap:
        """The gap for a time away that has not ended."""
        self.is_gap_open = True
        return self._next_gap(f"{name} has been away for {time.monotonic() - self.last_s:.1f} s ({self.lost})")

    def paused(self, pause_s: float, name: str) -> Iterator[Gap]:
        """Wait, until reading is stopped at most."""
        until_s = time.monotonic() + pause_s
        while not self.stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
            due_s = self.due_in_s()
            if due_s == 0.0:
                yield self.open_gap(name)
            else:
                self.stop.wait(left_s if due_s is None else min(left_s, due_s))

    def _gap(self, name: str, reason: str, until_ns: int) -> Gap:
        """The segment in place of what was lost."""
        away_s = (until_ns - self.start_ns) / 1e9
        detail = f"{name} was away for {away_s:.1f} s ({reason})"
        self.start_ns = until_ns
        return self._next_gap(detail)

    def _next_gap(self, detail: str) -> Gap:
        gap = Gap("media", stream=self.stream, first=self.index, last=self.index, cause="source_lost", detail=detail)
        self.index += 1
        return gap


def _since_s(cutter: Cutter) -> float:
    """How long ago the end of what was cut was received: noticing a loss takes time."""
    return max(0.0, (time.time_ns() - cutter.received_ns) / 1e9) if cutter.received_ns else 0.0


def _once(opening: Opening, course: _Course) -> Iterator[Segment | EndOfStream]:
    """What can be opened once and has an end."""
    first_index = course.index
    for record in course.follow(opening):
        if isinstance(record, Segment):
            yield record
    if course.ended is None:
        return  # it was stopped
    if course.index == first_index:
        reason = course.ended.reason or "it holds no packet that can be read"
        raise course.ended.error or UserError(
            f"{opening.name}: cannot be read as media ({reason}); give some that can be read as it comes"
        )
    yield course.end()


# --- what comes back --------------------------------------------------------------------------------------


def _live(
    place: Place, course: _Course, settings: SourceSettings, random: Random, through: Through
) -> Iterator[Segment | Gap | EndOfStream]:
    """A live source, connected to again and again."""
    course.last_s = first_s = time.monotonic()
    num_failures = 0
    while not course.stop.is_set():
        if sum(each.is_running for each in course.left) > MAX_LEFT:
            yield from course.paused(settings.max_pause_s, place.name)
            continue
        began_s = time.monotonic()
        course.tell("connecting", place.name)
        options = {**FROM_NOW, **settings.options} if course.was_reached else settings.options
        yield from course.follow(through(place).opening(settings.open_timeout_s, settings.read_timeout_s, options))
        ended, opened = course.ended, course.opened
        if ended is None:
            return  # it was stopped
        if (opened is None and ended.reason is None) or (opened is not None and opened.is_finite):
            yield course.end()
            return
        reason = ended.reason or "it ended"
        is_due = settings.first_open_s is not None and time.monotonic() - first_s > settings.first_open_s
        if opened is not None or course.was_reached or not place.is_passive:  # nobody has to call a listener
            course.lost = reason
        if not course.was_reached and is_due:
            raise UserError(f"{place.name}: was not reached within {settings.first_open_s} s ({reason})")
        course.tell("lost", f"{place.name}: {reason}")
        num_failures = 1 if opened is not None and time.monotonic() - began_s > STEADY_S else num_failures + 1
        if not (place.is_passive and (opened is not None or reason == NOTHING_CAME)):
            yield from course.paused(pause_s(num_failures, settings, random), place.name)


def pause_s(num_failures: int, settings: SourceSettings, random: Random) -> float:
    """How long to wait before a source is tried again that has failed so often in a row."""
    doubled_s = settings.first_pause_s * 2.0 ** min(num_failures - 1, 30)
    return min(settings.max_pause_s, doubled_s * random.uniform(0.5, 1.5))


# --- recordings -------------------------------------------------------------------------------------------


def _recorded(place: Place, course: _Course) -> Iterator[Segment | EndOfStream]:
    """Files, one after the other, as one stream."""
    first_index, is_alone = course.index, len(place.paths) == 1
    for path in place.paths:
        try:
            for record in _file(path, course):
                if course.stop.is_set():
                    return
                if isinstance(record, EndOfStream):
                    course.index, course.start_ns = record.num_segments, record.duration_ns
                    course.flaws += record.flaws if is_alone else [f"{path.name}: {flaw}" for flaw in record.flaws]
                else:
                    yield record
        except UserError as error:
            if is_alone:
                raise
            course.flaws.append(str(error))
    if course.stop.is_set():
        return
    if course.index == first_index:
        raise UserError(f"{place.name}: none of its {len(place.paths)} files can be read ({course.flaws[0]})")
    yield course.end()


def _file(path: Path, course: _Course) -> Iterator[Segment | EndOfStream]:
    if course.group_s is not None:
        return _once(Opening(str(path), str(path), options=whitelists("file")), replace(course, flaws=[]))
    return segments(
        str(path),
        stream=course.stream,
        target_s=course.target_ns / 1e9,
        first_index=course.index,
        start_ns=course.start_ns,
    )
