"""The frame store: what was decoded of segments, ahead of the stages that look at it, within a budget of memory.

Decoding is work of its own: it is done once for a segment and a kind of demand, for all stages of the worker that ask
for it, takes a core like a batch does, and is booked as decoding. What is being looked at is *pinned*; what nobody
looks at is kept for whoever may, the least recently used going first once the budget is reached, and at once when every
group that wanted it has said that it is done with the segment. A decode waits while pinned frames fill the budget.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from engine.decide import keeping
from engine.decide.cores import urgent_ns
from engine.run.cores import Cores
from engine.spec.operator import Demand, Media, by_kind
from streams.errors import Transient
from streams.records import Segment

DEFAULT_MAX_BYTES = 1 << 30
TIMEOUT_S = 120.0  # of one decode

Place = tuple[str, int, type[Demand]]  # stream, segment, kind of demand
OnDecoded = Callable[[str, Segment, type[Demand], int, int], None]  # ..., began and ended (Unix time, ns)


@dataclass(slots=True)
class _Decoded:
    """What there is of one segment, of one kind."""

    products: dict[Any, Any] = field(default_factory=dict)
    num_bytes: int = 0
    decode_s: float = 0.0
    num_pins: int = 0
    done_by: set[str] = field(default_factory=set)  # groups that will not look at it again
    lock: anyio.Lock = field(default_factory=anyio.Lock)


@dataclass(frozen=True, slots=True)
class Decoding:
    """One decode: of which segment, for what kind of demand, how, and when (Unix time, ns)."""

    index: int
    kind: str
    began_ns: int
    ended_ns: int
    path: str = ""

    @property
    def took_s(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


@dataclass(slots=True)
class Hold:
    """Frames that stay as long as this is not let go; `media` by segment. `decodings` are those that were done for
    it: none where the frames were there already."""

    media: dict[int, Media]
    decodings: list[Decoding]
    _release: Callable[[], None]

    @property
    def decode_s(self) -> float:
        return sum(decoding.took_s for decoding in self.decodings)

    @property
    def decode_path(self) -> str:
        return ", ".join(sorted({decoding.path for decoding in self.decodings} - {""}))

    def let_go(self) -> None:
        self._release()


class FrameStore:
    """One for each worker and device. `on_decoded` is told of every decode."""

    def __init__(self, cores: Cores, max_bytes: int = DEFAULT_MAX_BYTES, on_decoded: OnDecoded | None = None) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.decoded_by: Counter[str] = Counter()  # what decoded it
        self.decode_s = 0.0
        self._cores = cores
        self._on_decoded = on_decoded
        self._kept: OrderedDict[Place, _Decoded] = OrderedDict()
        self._demands: dict[str, dict[str, tuple[Demand, ...]]] = {}  # by stream and group
        self._has_room = anyio.Event()
        self.pinned_bytes = 0  # of what is being looked at
        self._bytes_of: Counter[str] = Counter()  # by stream

    @property
    def num_decoded(self) -> int:
        return self.decoded_by.total()

    def serve(self, stream: str, group: str, demands: Sequence[Demand]) -> None:
        """A group will ask for these of the stream's segments."""
        self._demands.setdefault(stream, {})[group] = tuple(dict.fromkeys(demands))

    def leave(self, stream: str, group: str) -> None:
        """A group will not ask any more; a stream that none asks for is forgotten."""
        groups = self._demands.get(stream, {})
        groups.pop(group, None)
        if not groups:
            self._demands.pop(stream, None)
            for place in [place for place in self._kept if place[0] == stream]:
                if not self._kept[place].num_pins:
                    self._drop(place)

    def bytes_of(self, stream: str) -> int:
        return self._bytes_of.get(stream, 0)

    def release(self, stream: str, group: str, index: int) -> None:
        """A group is done with a segment."""
        groups = self._demands.get(stream, {})
        for kind in by_kind(groups.get(group, ())):
            kept = self._kept.get((stream, index, kind))
            if kept is None:
                continue
            kept.done_by.add(group)
            if not kept.num_pins and keeping.is_over(kind, groups, kept.done_by):
                self._drop((stream, index, kind))

    async def hold(self, stream: str, segments: Sequence[Segment], demands: Sequence[Demand], due_ns: int = 0) -> Hold:
        """These demands of these segments, decoded; by when they should be (server's Unix time), 0: whenever. Raises
        Permanent where one cannot be had, Transient where it takes too long."""
        pinned: list[Place] = []
        products: dict[int, dict[Any, Any]] = {segment.index: {} for segment in segments}
        decodings: list[Decoding] = []
        await self._room(stream, segments, demands)  # before anything is held, or two could wait for each other
        try:
            for segment in segments:
                for kind, wanted in by_kind(demands).items():
                    place = stream, segment.index, kind
                    kept = self._kept.setdefault(place, _Decoded())
                    self._pin(kept)
                    pinned.append(place)
                    if any(demand not in kept.products for demand in wanted):
                        decodings += await self._decode(segment, place, kept, wanted, due_ns)
                    self._kept.move_to_end(place)
                    products[segment.index] |= {demand: kept.products[demand] for demand in wanted}
        except BaseException:
            self._unpin(pinned)
            raise
        media = {segment.index: Media(segment, products[segment.index]) for segment in segments}
        return Hold(media, decodings, partial(self._unpin, pinned))

    async def _decode(
        self, segment: Segment, place: Place, kept: _Decoded, wanted: Sequence[Demand], due_ns: int
    ) -> list[Decoding]:
        """What is not there yet, for all groups that will ask; none where another has done it."""
        stream, _, kind = place
        async with kept.lock:
            everyone = (each for demands in self._demands.get(stream, {}).values() for each in demands)
            missing = [
                each
                for each in dict.fromkeys([*wanted, *(each for each in everyone if type(each) is kind)])
                if each not in kept.products
            ]
            if all(each in kept.products for each in wanted):
                return []
            alone = anyio.CapacityLimiter(1)
            async with self._cores.turn(
                urgent_ns(due_ns, self._cores.now_ns())
            ):  # waiting for a core is no part of decoding
                began_ns = time.time_ns()
                try:
                    with anyio.fail_after(TIMEOUT_S):
                        made: Mapping[Any, Any] = await anyio.to_thread.run_sync(
                            kind.decode, segment, missing, abandon_on_cancel=True, limiter=alone
                        )
                except TimeoutError as error:
                    raise Transient(f"segment {segment.index} was not decoded within {TIMEOUT_S:g} s") from error
                ended_ns = time.time_ns()
            kept.products |= made
            grown = sum(product.nbytes for product in made.values())
            kept.num_bytes += grown
            self.num_bytes += grown
            self.pinned_bytes += grown  # whoever decodes holds it
            self._bytes_of[stream] += grown
            kept.decode_s += (ended_ns - began_ns) / 1e9
            path = next((path for product in made.values() if (path := getattr(product, "path", ""))), "")
            self.decoded_by[path or "none"] += 1
            self.decode_s += (ended_ns - began_ns) / 1e9
            if self._on_decoded is not None:
                self._on_decoded(stream, segment, kind, began_ns, ended_ns)
            self._evict()
            return [Decoding(segment.index, kind.__name__, began_ns, ended_ns, path)]

    # --- memory ------------------------------------------------------------------------------------------------

    async def _room(self, stream: str, segments: Sequence[Segment], demands: Sequence[Demand]) -> None:
        """Wait while what is being looked at fills the budget and something would have to be decoded; what nobody looks
        at goes first."""
        self._evict()
        while keeping.has_to_wait(self.pinned_bytes, self.max_bytes, is_there=self._has_all(stream, segments, demands)):
            await self._has_room.wait()

    def _has_all(self, stream: str, segments: Sequence[Segment], demands: Sequence[Demand]) -> bool:
        for segment in segments:
            for kind, wanted in by_kind(demands).items():
                kept = self._kept.get((stream, segment.index, kind))
                if kept is None or any(demand not in kept.products for demand in wanted):
                    return False
        return True

    def _evict(self) -> None:
        unpinned = ((place, kept.num_bytes) for place, kept in self._kept.items() if not kept.num_pins)
        for place in keeping.evicted(unpinned, self.num_bytes, self.max_bytes):
            self._drop(place)

    def _unpin(self, places: list[Place]) -> None:
        for place in places:
            kept = self._kept.get(place)
            if kept is None:
                continue
            kept.num_pins -= 1
            if kept.num_pins:
                continue
            self.pinned_bytes -= kept.num_bytes
            stream, _, kind = place
            if not kept.products or keeping.is_over(kind, self._demands.get(stream, {}), kept.done_by):
                self._drop(place)
        places.clear()
        self._evict()
        self._has_room.set()
        self._has_room = anyio.Event()  # whoever waits next waits for the next

    def _pin(self, kept: _Decoded) -> None:
        if not kept.num_pins:
            self.pinned_bytes += kept.num_bytes
        kept.num_pins += 1

    def _drop(self, place: Place) -> None:
        """Of what nobody looks at."""
        stream, num_bytes = place[0], self._kept.pop(place).num_bytes
        self.num_bytes -= num_bytes
        self._bytes_of[stream] -= num_bytes
        if not self._bytes_of[stream]:
            del self._bytes_of[stream]
