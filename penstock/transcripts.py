"""Transcripts: what was heard in a stream, as it is stored."""

from collections.abc import Sequence

from engine.node.outputs import giving, outputs_of, stored_of
from engine.run.registry import Registry
from engine.spec.catalogue import installed
from operators.heard import Speech, Transcript
from streams.wire.ledger import Ledger

AT_ONCE = 512


async def streams_heard(registry: Registry) -> dict[str, str]:
    """The streams in which speech was looked for, each with the stage that did so last."""
    pairs = await giving(registry, installed(), lambda kind: issubclass(kind, Transcript))
    return {stream: stage for stage, stream in pairs}


async def heard_in(ledger: Ledger, stage: str, stream: str) -> Sequence[Speech]:
    """Every utterance that a stage found in a stream, in order of time."""
    found = (await stored_of(ledger, [(stage, stream)]))[stage, stream]
    places = [found[key] for key in sorted(found)]
    said: list[Speech] = []
    for start in range(0, len(places), AT_ONCE):
        outputs = await outputs_of(ledger, places[start : start + AT_ONCE], Transcript)
        said += [each for output in outputs.values() for each in output.observations]
    return sorted(said, key=lambda each: (each.start_ns, each.end_ns))
