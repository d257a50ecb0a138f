"""The story of a segment: what happened to it and why, in the order in which it did. Pure.

It is told from what is kept in the ledger (so also long after the fact), and with the reasons that workers remember of
the instructions they were given (while they live).
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.decide.answer import Answer
from streams.records import DeadLetter, EndOfStream, Gap, MediaMessage, Record, Result, Segment
from streams.subjects import Key


class Kept(msgspec.Struct, frozen=True):
    """A record of the ledger, when it was stored (the server's Unix time) and when what is made of it is due."""

    record: MediaMessage | Result | DeadLetter
    stored_ns: int
    seq: int
    num_bytes: int = 0
    due_ns: int = 0


class Remembered(Record, frozen=True, omit_defaults=False):
    """An instruction that a worker carried out, by its own clock."""

    at_ns: int
    stream: str
    segment: str
    stage: str
    what: str
    why: str
    worker: str = ""


class Line(Record, frozen=True, omit_defaults=False):
    """One thing that happened."""

    at_ns: int  # Unix time
    segment: str
    stage: str  # "" where it is about the segment itself
    what: str
    why: str
    worker: str = ""


def lines_of(
    kept: Iterable[Kept],
    names: Mapping[str, str],
    remembered: Iterable[Remembered] = (),
    answers: Iterable[tuple[Answer, int]] = (),
    stage: str = "",
) -> list[Line]:
    """What happened, in order. `names` are of stages, by id; with `stage`, of that one only. Each answer comes with the
    time at which it was stored."""
    kept = list(kept)
    told: list[Line] = []
    for each in kept:
        match each.record:
            case Segment() | EndOfStream():
                told.append(_arrival(each, each.record))
            case Result():
                told += _computed(each, each.record, names, _mates(each.record, kept))
            case Gap():
                told.append(_gap(each, each.record, names))
            case DeadLetter():
                told.append(_dead(each, each.record, names))
    told += (_reason(each) for each in remembered)
    told += (_answer(answer, stored_ns) for answer, stored_ns in answers)
    wanted = [line for line in told if not stage or line.stage in ("", stage)]
    return sorted(wanted, key=lambda line: line.at_ns)


def _arrival(kept: Kept, record: Segment | EndOfStream) -> Line:
    if isinstance(record, EndOfStream):
        return Line(
            at_ns=kept.stored_ns,
            segment="end",
            stage="",
            what="ended",
            why=f"the stream has {record.num_segments} segments",
        )
    span = f"{record.start_ns / 1e9:.2f} s to {(record.start_ns + record.duration_ns) / 1e9:.2f} s"
    due = f"; due {(kept.due_ns - kept.stored_ns) / 1e9:.2f} s later" if kept.due_ns else ""
    flaws = f"; {'; '.join(record.flaws)}" if record.flaws else ""
    why = f"media {span}, {kept.num_bytes / 1000:.0f} kB{due}{flaws}"
    return Line(at_ns=kept.stored_ns, segment=str(record.index), stage="", what="arrived", why=why)


def _computed(kept: Kept, record: Result, names: Mapping[str, str], mates: Sequence[Result]) -> list[Line]:
    segment = str(Key(record.first, record.last))
    name = names.get(record.stage, record.stage)
    measured = record.measured
    if measured is None:
        return [
            Line(at_ns=kept.stored_ns, segment=segment, stage=name, what="stored", why=f"by {record.implementation}")
        ]
    worker = measured.worker
    began_ns = measured.started_ns or kept.stored_ns
    told = []
    if measured.started_ns:
        told.append(
            Line(
                at_ns=began_ns - int(measured.wait_s * 1000000000.0),
                segment=segment,
                stage=name,
                what="ready",
                why="all its inputs are stored",
                worker=worker,
            )
        )
    if measured.held_back:
        why = f"{measured.held_back}: nothing was computed"
        told.append(Line(at_ns=began_ns, segment=segment, stage=name, what="held back", why=why, worker=worker))
        return [*told, _stored(kept, segment, name, worker)]
    waited = f"after {measured.wait_s:.3f} s of waiting" if measured.wait_s >= 0.0005 else "at once"
    if measured.decode_s:
        waited += f", {measured.decode_s:.3f} s of it decoding"
        waited += f" ({measured.decode_path})" if measured.decode_path else ""
    batch = (
        f"batch {measured.batch} of {measured.batch_size}" if measured.batch else f"a batch of {measured.batch_size}"
    )
    beside = sorted({f"{names.get(m.stage, m.stage)} {Key(m.first, m.last)}" for m in mates})
    if beside:
        batch += f" with {', '.join(beside)}"
    again = f"; delivery {measured.attempt}" if measured.attempt > 1 else ""
    why = f"{waited}, in {batch}, {measured.compute_s:.3f} s of its own, by {record.implementation}{again}"
    told.append(Line(at_ns=began_ns, segment=segment, stage=name, what="computed", why=why, worker=worker))
    return [*told, _stored(kept, segment, name, worker)]


def _stored(kept: Kept, segment: str, name: str, worker: str) -> Line:
    why = f"as result {kept.seq}"
    return Line(at_ns=kept.stored_ns, segment=segment, stage=name, what="stored", why=why, worker=worker)


def _mates(record: Result, kept: Sequence[Kept]) -> list[Result]:
    """The other outputs that were computed in the same batch."""
    if record.measured is None or not record.measured.batch:
        return []
    mine = record.measured
    return [
        other.record
        for other in kept
        if isinstance(other.record, Result)
        and other.record is not record
        and other.record.measured is not None
        and other.record.implementation == record.implementation
        and (other.record.measured.worker, other.record.measured.batch) == (mine.worker, mine.batch)
        and other.record.measured.started_ns == mine.started_ns
    ]


def _gap(kept: Kept, record: Gap, names: Mapping[str, str]) -> Line:
    name = "" if record.stage == "media" else names.get(record.stage, record.stage)
    return Line(
        at_ns=kept.stored_ns,
        segment=str(Key(record.first, record.last)),
        stage=name,
        what=f"gap: {record.cause}",
        why=record.detail or record.cause,
    )


def _dead(kept: Kept, record: DeadLetter, names: Mapping[str, str]) -> Line:
    name = names.get(record.stage, record.stage)
    why = f"{record.cause}; delivered {record.attempts} times"
    return Line(at_ns=kept.stored_ns, segment=str(Key(record.first, record.last)), stage=name, what="given up", why=why)


def _reason(remembered: Remembered) -> Line:
    return Line(
        at_ns=remembered.at_ns,
        segment=remembered.segment,
        stage=remembered.stage,
        what=f"told: {remembered.what}",
        why=remembered.why,
        worker=remembered.worker,
    )


def _answer(answer: Answer, stored_ns: int) -> Line:
    name = answer.stages[-1].stage if answer.stages else ""
    said = f"{answer.question!r}: {answer.answer}" if answer.question else "what its last stage found"
    why = f"{said} (job {answer.job}, {answer.latency_s:.2f} s after it was due to begin)"
    return Line(at_ns=stored_ns, segment=str(Key(answer.first, answer.last)), stage=name, what="answered", why=why)
