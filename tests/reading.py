"""Reading a live source in a thread, as feeding does, and what is asked of what comes of it."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from streams.media.probe import open_decoder, time_ns, to_decoder
from streams.media.sources import SourceSettings, read
from streams.records import EndOfStream, Gap, Segment, decode_media, encode

Record = Segment | Gap | EndOfStream
QUICK = SourceSettings(open_timeout_s=5.0, read_timeout_s=1.0, first_pause_s=0.05, max_pause_s=0.2)
WAIT_S = 30.0  # for what must happen; nothing waits for it to pass


class Reading:
    """A source being read in a thread, as the shell does it."""

    def __init__(self, records: Iterator[Record], stop: threading.Event) -> None:
        self.records: list[Record] = []
        self.error: BaseException | None = None
        self._stop = stop
        self._changed = threading.Condition()
        self._source = records
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self, what: Callable[[list[Record]], object]) -> list[Record]:
        """Until it holds for what has been read."""
        with self._changed:
            held = self._changed.wait_for(lambda: what(self.records) or self.error, WAIT_S)
        assert held, f"it did not happen; read so far: {[brief(each) for each in self.records]}"
        if self.error is not None:
            raise self.error
        return list(self.records)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5.0)  # far less than the timeouts of what is read
        assert not self._thread.is_alive(), "it did not stop"

    def _run(self) -> None:
        try:
            for record in self._source:
                with self._changed:
                    self.records.append(decode_media(encode(record)))
                    self._changed.notify_all()
        except BaseException as error:  # raised again where it is waited for
            with self._changed:
                self.error = error
                self._changed.notify_all()


@contextmanager
def reading(url: str, target_s: float = 0.5, settings: SourceSettings = QUICK, **more: Any) -> Iterator[Reading]:
    stop = threading.Event()
    records = read(url, "s", live=True, stop=stop, target_s=target_s, settings=settings, random=Random(1), **more)
    one = Reading(records, stop)
    try:
        yield one
    finally:
        one.stop()


def brief(record: Record) -> str:
    match record:
        case Segment():
            return f"{record.index}: {record.start_ns / 1e9:.3f} + {record.duration_ns / 1e9:.3f} s {record.flaws}"
        case Gap():
            return f"{record.first}-{record.last}: {record.detail}"
        case _:
            return f"end: {record}"


def owned(segment: Segment, kind: str) -> list[bytes]:
    """The packets of a kind of track that the segment owns."""
    (index,) = [index for index, track in enumerate(segment.tracks) if track.kind == kind]
    base, end_ns = segment.tracks[index].time_base, segment.start_ns + segment.duration_ns
    return [
        packet.data
        for packet in segment.packets
        if packet.track == index and segment.start_ns <= time_ns(packet.pts, base, segment.origin_ns) < end_ns
    ]


def pictures(segment: Segment) -> list[tuple[int, int]]:
    """The sizes of the pictures that the segment owns, decoded alone."""
    track, end_ns = segment.tracks[0], segment.start_ns + segment.duration_ns
    decoder = open_decoder(track)
    sent = [to_decoder(each, track.time_base) for each in segment.packets if each.track == 0]
    frames = [frame for packet in [*sent, None] for frame in decoder.decode(packet)]  # type: ignore[attr-defined]
    return [
        (frame.width, frame.height)
        for frame in frames
        if segment.start_ns <= time_ns(frame.pts, track.time_base, segment.origin_ns) < end_ns
    ]


def assert_whole(records: list[Record]) -> list[Segment]:
    """Numbered without a hole, media time without one but for gaps; times of capture do not go back."""
    index, at_ns, captured_ns, was_gap = 0, 0, 0, False
    for record in records:
        match record:
            case Segment():
                assert record.index == index
                assert record.start_ns > at_ns if was_gap else record.start_ns == at_ns
                assert record.captured_ns >= captured_ns
                at_ns, captured_ns = record.start_ns + record.duration_ns, record.captured_ns
            case Gap():
                assert (record.first, record.last, record.stage, record.cause) == (index, index, "media", "source_lost")
            case EndOfStream():
                assert (record.num_segments, record.duration_ns) == (index, at_ns)
        was_gap, index = isinstance(record, Gap), index + 1
    return [record for record in records if isinstance(record, Segment)]


def assert_lost_once(records: list[Record]) -> None:
    """Segments, one gap, segments; everything given before the loss can be decoded, and everything after."""
    gaps = [record for record in records if isinstance(record, Gap)]
    (gap,) = gaps
    assert re.search(r"was away for \d+\.\d s \(.+\)$", gap.detail)
    assert "secret" not in gap.detail
    found = assert_whole(records)
    before = [each for each in found if each.index < gap.first]
    after = [each for each in found if each.index > gap.first]
    assert before
    assert after
    assert {each.tracks[0].codec for each in found} == {"h264"}
    assert all(len(pictures(each)) == len(owned(each, "video")) > 0 for each in (*before[:-1], after[0]))
    assert all(each.captured_ns > 10**18 for each in found)


def lost_once(records: list[Record]) -> bool:
    """A gap, and a segment after it."""
    return any(isinstance(each, Gap) for each in records) and isinstance(records[-1], Segment)
