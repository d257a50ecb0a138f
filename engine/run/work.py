"""The records that a group's work comes to."""

import msgspec

from engine.decide.instructions import Compute, GiveGap
from engine.run.pool import Done
from streams.records import DeadLetter, Gap, Measured, Result


def result_of(work: Compute, ran: Done, stream: str, worker: str, decode_s: float) -> Result:
    """The record of an output that was computed."""
    rung = work.stage.running.planned.rung
    return Result(
        stage=work.stage.id,
        stream=stream,
        first=work.key.first,
        last=work.key.last,
        output=msgspec.Raw(ran.encoded),
        implementation=rung.rung,
        measured=Measured(
            compute_s=ran.compute_s,
            wait_s=max(0, ran.started_ns - work.event.since_ns) / 1e9,
            batch_size=ran.batch_size,
            worker=worker,
            decode_s=decode_s,
            batch=ran.batch,
            attempt=work.event.num_delivered,
            started_ns=ran.started_ns,
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
