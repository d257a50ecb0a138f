"""Bad media files, thrown at all that opens, reads, cuts and decodes them."""

import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import bad_making as making
import msgspec
from bad_watch import Case, Outcome, one_line

from engine.spec.operator import Media as Given
from operators.media.pictures import FrameSpec, frames
from operators.media.sound import AudioSpec, audio
from streams.errors import Malformed, Permanent, UserError
from streams.media.pipe import Pipe
from streams.media.probe import probe
from streams.media.segmenter import segments, stream_id
from streams.media.sources import read, read_bytes
from streams.records import EndOfStream, Segment, decode_media, encode

STREAMABLE = frozenset(
    {"fragmented.mp4", "h264.mkv", "vp8.webm", "h264.ts", "flv1.flv", "sound.ogg", "sound.wav", "sound.aac"}
)
EXTREMES = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
BOXES = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"udta"})
HEAD_BYTES = 2048  # of containers that are not rows of boxes: most that matters is there
MAX_SEGMENTS = 400
PICTURES, SOUND = FrameSpec(interval_ns=250_000_000, max_width=320), AudioSpec()


class Files:
    """Media. A target is how it is read, and the name of the file that was spoilt."""

    name = "media"
    max_s = 5.0
    batch = 1 << 40

    def __init__(self, seed: int, clips: dict[str, bytes]) -> None:
        self._seed = seed
        self._clips = clips
        self._names = sorted(clips)
        self._folder = Path()
        self._records: dict[str, list[bytes]] = {}

    def case(self, index: int) -> Case:
        chance = Random(f"{self._seed} media {index}")
        name = self._names[index % len(self._names)]
        good = self._clips[name]
        how = chance.choice(("cut", "cut", "cut", "decoded", "decoded", "anew"))
        if name in STREAMABLE:
            how = chance.choice((how, "piped"))
        if chance.random() < 0.3:
            how = "record"
        others = self._clips[chance.choice(self._names)]
        return Case(
            f"{how}-{name}",
            struct.pack(">Q", chance.getrandbits(63)) if how == "record" else spoilt(chance, good, others),
        )

    def open(self) -> None:
        memory = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-bad-", dir=memory if memory.is_dir() else None))

    def throw(self, case: Case) -> Outcome:
        how, _, name = case.target.partition("-")
        path = self._folder / name
        try:
            if how == "record":
                return self._decoded_record(name, case.data)
            path.write_bytes(case.data)
            for record in _read(how, path, case.data):
                for flaw in record.flaws:
                    one_line(flaw)
                if how == "decoded" and isinstance(record, Segment):
                    _decoded(record)
        except UserError as error:
            one_line(error)
            return "refused"
        return "accepted"

    def check(self) -> None: ...

    def close(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    def _decoded_record(self, name: str, seed: bytes) -> Outcome:
        """A segment as it is stored, spoilt as whoever writes into the ledger can, and decoded as a worker does."""
        if name not in self._records:
            path = self._folder / name
            path.write_bytes(self._clips[name])
            self._records[name] = [
                encode(each) for each in segments(str(path), stream="s", target_s=1.0) if isinstance(each, Segment)
            ]
        chance = Random(seed)
        tree: Any = msgspec.msgpack.decode(chance.choice(self._records[name]))
        where = chance.choice((("tracks",), ("tracks",), ("packets",), ()))
        try:
            for key in where:
                tree[key] = making.value(chance, tree[key])
            record = decode_media(msgspec.msgpack.encode(tree if where else making.value(chance, tree)))
        except (OverflowError, UnicodeEncodeError, TypeError, Malformed):
            return "refused"
        if isinstance(record, Segment):
            _decoded(record)
        return "accepted"


def _read(how: str, path: Path, data: bytes) -> Iterator[Any]:
    """All of its records, as the product reads it."""
    if how == "piped":
        pipe = Pipe("bytes", max_bytes=1 << 30)
        pipe.feed(data)
        pipe.close()
        yield from _some(read_bytes(pipe, "s", live=False, stop=threading.Event(), target_s=0.5))
        return
    if how == "anew":
        stop = threading.Event()
        yield from _some(read(str(path), "s", live=False, stop=stop, target_s=0.5, transcode_gop_s=0.5))
        return
    probe(str(path))
    stream_id(path, 0.5)
    yield from _some(segments(str(path), stream="s", target_s=0.5))


def _some(records: Iterator[Any]) -> Iterator[Any]:
    for index, record in enumerate(records):
        if index > MAX_SEGMENTS:
            return
        encode(record)
        if not isinstance(record, Segment | EndOfStream):
            raise AssertionError(f"a {type(record).__name__} of a file")
        yield record


def _decoded(segment: Segment) -> None:
    given = Given(segment)
    decodes: tuple[Callable[[], Any], ...] = (lambda: frames(given, PICTURES), lambda: audio(given, SOUND))
    for decode in decodes:
        try:
            decode()
        except Permanent as error:
            one_line(error)


# --- spoiling ----------------------------------------------------------------------------------------------------


def spoilt(chance: Random, good: bytes, others: bytes) -> bytes:
    """A file with bits flipped, cut off, its boxes moved about, its numbers made extreme, or another's bytes in it."""
    made = bytearray(good)
    match chance.randrange(8):
        case 0:
            for _ in range(chance.choice((1, 8, 64, 1000))):
                made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        case 1:
            del made[chance.choice((chance.randrange(len(made)), chance.randrange(min(len(made), HEAD_BYTES)))) :]
        case 2:
            first = chance.randrange(len(made))
            del made[first : first + chance.choice((1, 188, 4096, len(made) // 3))]
        case 3:
            at = chance.randrange(len(made))
            made[at:] = others[chance.randrange(len(others)) :]
        case 4 | 5 if boxes := list(_boxes(good, 0, len(good))):
            _move_boxes(chance, made, boxes)
        case _:
            end = len(made) if chance.random() < 0.3 else min(len(made), HEAD_BYTES)
            for _ in range(chance.choice((1, 2, 5, 20))):
                at, size = chance.randrange(end), chance.choice((1, 2, 4, 8))
                made[at : at + size] = (chance.choice(EXTREMES) & (256**size - 1)).to_bytes(
                    size, chance.choice(("big", "little"))
                )
    return bytes(made)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """The boxes of an MP4 file, those within others too: (first byte, size, kind)."""
    while at + 8 <= end:
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if size < 8 or at + size > end or not kind.isalnum():
            return
        yield at, size, kind
        if kind in BOXES:
            yield from _boxes(data, at + 8, at + size)
        at += size


def _move_boxes(chance: Random, made: bytearray, boxes: list[tuple[int, int, bytes]]) -> None:
    """One to three boxes: another size, another number inside, taken out, doubled, renamed."""
    for at, size, _ in chance.sample(boxes, min(len(boxes), chance.choice((1, 1, 3)))):
        match chance.randrange(6):
            case 0:
                made[at : at + 4] = struct.pack(
                    ">I", chance.choice((*EXTREMES, size + 1, size - 1, 2 * size)) & 0xFFFFFFFF
                )
            case 1 | 2:
                inside = at + 8 + 4 * chance.randrange(max(1, min(size - 8, 400) // 4))
                made[inside : inside + 4] = struct.pack(">I", chance.choice((*EXTREMES, chance.getrandbits(32))))
            case 3:
                del made[at : at + size]
            case 4:
                made[at:at] = made[at : at + size]
            case 5:
                made[at + 4 : at + 8] = chance.choice((b"free", b"moov", b"trak", b"mdat", b"\0\0\0\0"))
