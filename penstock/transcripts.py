"""Transcripts: what was heard in a stream, as it is stored."""

from collections.abc import Sequence

from engine.node.outputs import giving, outputs_of, stored_of
from engine.run.registry import Registry
from engine.spec.catalogue import installed
from operators.capabilities import Speech, Transcript
from streams.errors import UserError
from streams.wire.ledger import Ledger

AT_ONCE = 512


async def streams_heard(registry: Registry) -> dict[str, str]:
    """The streams in which speech was looked for, each with the stage that did so last."""
    pairs = await giving(registry, installed(), lambda kind: issubclass(kind, Transcript))
    return {stream: stage for stage, stream in pairs}


async def heard_in(registry: Registry, ledger: Ledger, stream: str) -> Sequence[Speech]:
    """Every utterance, in order of time. Raises UserError for a stream in which none was looked for."""
    stages = await streams_heard(registry)
    if stream not in stages:
        raise UserError(
            f"nothing was heard in a stream {stream!r}: `penstock run` or a job that transcribes comes first"
        )
    pair = stages[stream], stream
    places = [subject for _, subject in sorted((await stored_of(ledger, [pair]))[pair].items())]
    said: list[Speech] = []
    for start in range(0, len(places), AT_ONCE):
        found = await outputs_of(ledger, places[start : start + AT_ONCE], Transcript)
        for _, value in sorted(found.items(), key=lambda each: each[0]):
            if isinstance(value, Transcript):
                said += value.observations
    return sorted(said, key=lambda each: (each.start_ns, each.end_ns))
