"""What a group's work starts from, as operators see it, and the records it comes to."""

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.decide.instructions import Compute, GiveGap
from engine.run.done import Done
from engine.spec.operator import Entry, Inputs, Media
from engine.spec.spending import spent
from engine.spec.workflow import MEDIA, WHEN
from streams.records import DeadLetter, Gap, Measured, Result, encode


def inputs_of(work: Compute, stream: str, params: Any, media: Mapping[int, Media]) -> Inputs:
    """What an output is computed from; of `media`, the segments that were decoded for it."""
    key, planned = work.key, work.stage.running.planned
    ports: dict[str, tuple[tuple[Entry, ...], ...]]
    if work.stage.is_plain and not media:  # most outputs, and what they cost beside their computing counts
        (found,) = work.inputs.values()
        known = found[key.last]
        one = ((Entry(key.last, known.value, known.gap),),)
        ports = {}
        for port, sources in planned.inputs.items():
            ports[port] = one * len(sources)
        return Inputs(stream, key.first, key.last, params, ports)
    entries = {
        source: tuple(
            Entry(index, media.get(index, known.value) if source == MEDIA else known.value, known.gap)
            for index, known in found.items()  # in order of segment
        )
        for source, found in work.inputs.items()
    }
    read = ((port, sources) for port, sources in planned.inputs.items() if port != WHEN)
    ports = {port: tuple(entries[source] for source in sources) for port, sources in read}
    before = work.previous.value if work.previous is not None else None
    return Inputs(stream, key.first, key.last, params, ports, before)


def result_of(
    work: Compute, rung: str, ran: Done, stream: str, worker: str, decode_s: float = 0.0, decode_path: str = ""
) -> Result:
    """The record of an output that was computed, on which rung."""
    return Result(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        output=msgspec.Raw(ran.encoded),
        implementation=rung,
        measured=Measured(
            compute_s=ran.compute_s,
            wait_s=max(0, ran.started_ns - work.event.since_ns) / 1e9,
            batch_size=ran.batch_size,
            worker=worker,
            decode_s=decode_s,
            decode_path=decode_path,
            batch=ran.batch,
            attempt=work.event.num_delivered,
            started_ns=ran.started_ns,
            spent=spent(ran.calls),
        ),
    )


def empty_result_of(work: Compute, output: msgspec.Struct, stream: str, worker: str, now_ns: int) -> Result:
    """The record of an output that was not computed, for its gate is shut."""
    return Result(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        output=msgspec.Raw(encode(output)),
        implementation=work.stage.running.planned.rung.rung,
        measured=Measured(
            batch_size=0,
            worker=worker,
            attempt=work.event.num_delivered,
            started_ns=now_ns,
            held_back=work.why,
        ),
    )


def gap_of(work: GiveGap, stream: str) -> Gap:
    """The record of an output that there will not be."""
    return Gap(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        cause=work.cause,
        detail=work.why,
    )


def dead_letter_of(work: GiveGap, stream: str) -> DeadLetter:
    """What is kept of work that was given up."""
    return DeadLetter(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        cause=work.why,
        attempts=work.event.num_delivered,
    )
