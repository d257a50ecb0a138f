"""A toy ledger: write-once records in two streams, each with its own order of storing, and durable consumers.

It keeps what JetStream keeps of its promises and nothing else: a record stands where it was put first, a consumer
delivers what matches at least once, and a message that is not acknowledged comes again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from engine.spec.workflow import MEDIA
from streams.subjects import Key

Place = tuple[str, Key | None]  # source and key; the stream's end is (MEDIA, None)


@dataclass(frozen=True, slots=True)
class ToyRecord:
    """What stands at a place; `seq` orders all records of its stream."""

    place: Place
    seq: int
    value: Any


def stream_of(source: str) -> str:
    """Media are kept in one stream, results in the other."""
    return MEDIA if source == MEDIA else "results"


@dataclass(slots=True)
class ToyLedger:
    records: dict[Place, ToyRecord] = field(default_factory=dict)
    in_order: dict[str, list[ToyRecord]] = field(default_factory=lambda: {MEDIA: [], "results": []})

    def put(self, place: Place, value: Any) -> tuple[ToyRecord, bool]:
        """The record that stands there now, and whether it is this one."""
        standing = self.records.get(place)
        if standing is not None:
            return standing, False
        log = self.in_order[stream_of(place[0])]
        record = ToyRecord(place, len(log) + 1, value)
        log.append(record)
        self.records[place] = record
        return record, True

    def get(self, place: Place) -> ToyRecord | None:
        return self.records.get(place)

    def last_seq(self, source: str) -> int:
        """Of the records of a source, the sequence of the one stored last; 0 where there is none."""
        log = self.in_order[stream_of(source)]
        return next((record.seq for record in reversed(log) if record.place[0] == source), 0)

    def evict(self, place: Place) -> None:
        """A record falls out of retention."""
        self.records.pop(place, None)


@dataclass(slots=True)
class ToyConsumer:
    """Delivers the records of some sources, in order, and again what nobody acknowledged."""

    ledger: ToyLedger
    stream: str
    sources: frozenset[str]
    position: int = 0
    unacknowledged: dict[int, int] = field(default_factory=dict)  # by sequence, how often it was delivered
    returned: list[int] = field(default_factory=list)  # to be delivered again

    def waiting(self) -> bool:
        """Whether there is something to deliver."""
        self._pass_over()
        return bool(self.returned) or self.position < len(self.ledger.in_order[self.stream])

    def deliver(self, again: bool = False) -> tuple[ToyRecord, int] | None:
        """The next record and how often it was delivered; with `again`, one that was delivered and is still out."""
        log = self.ledger.in_order[self.stream]
        self._pass_over()
        if again and self.unacknowledged:
            seq = next(iter(self.unacknowledged))
        elif self.returned:
            seq = self.returned.pop(0)
        elif self.position < len(log):
            self.position += 1
            seq = self.position
        else:
            return None
        self.unacknowledged[seq] = self.unacknowledged.get(seq, 0) + 1
        record = log[seq - 1]
        if record.place not in self.ledger.records:
            del self.unacknowledged[seq]
            return None
        return record, self.unacknowledged[seq]

    def acknowledge(self, seq: int) -> None:
        self.unacknowledged.pop(seq, None)
        if seq in self.returned:
            self.returned.remove(seq)

    def give_back(self, seqs: Iterable[int]) -> None:
        """Whoever had these is gone, or wants them brought again."""
        self.returned += [seq for seq in seqs if seq in self.unacknowledged and seq not in self.returned]

    def _pass_over(self) -> None:
        log = self.ledger.in_order[self.stream]
        while self.position < len(log) and log[self.position].place[0] not in self.sources:
            self.position += 1
