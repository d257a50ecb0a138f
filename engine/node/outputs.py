"""What stages have found: their outputs, read back from the ledger.

Which there are is known from the jobs, those that have ended included, until they are forgotten: a stage's capability
says what its outputs are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
import structlog

from engine.run.registry import Registry
from engine.spec.catalogue import Catalogue
from streams import subjects
from streams.errors import Malformed, UserError
from streams.records import Result, decode_output, decode_result
from streams.subjects import Key
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)
T = TypeVar("T", bound=msgspec.Struct)

MAX_APART = 16  # stages and streams whose outputs are asked for one by one

Pair = tuple[str, str]  # a stage's id and a stream


async def giving(
    registry: Registry, catalogue: Catalogue, wanted: Callable[[type[msgspec.Struct]], bool]
) -> dict[Pair, type[msgspec.Struct]]:
    """The stages whose outputs are of a wanted type, on each stream, with that type; those of the job that was
    submitted last come last."""
    found: dict[Pair, type[msgspec.Struct]] = {}
    for job in sorted(await registry.jobs(), key=lambda job: job.submitted_ns):
        for stage in job.plan.stages:
            capability = catalogue.capabilities.get(stage.capability)
            if capability is not None and wanted(capability.output):
                found.pop((stage.id, job.stream), None)
                found[stage.id, job.stream] = capability.output
    return found


async def stored_of(ledger: Ledger, pairs: Sequence[Pair]) -> dict[Pair, dict[Key, str]]:
    """Which outputs there are, by segments, with their subjects."""
    found: dict[Pair, dict[Key, str]] = {pair: {} for pair in pairs}
    patterns = [subjects.results_of("*", "*")] if len(pairs) > MAX_APART else [subjects.results_of(*p) for p in pairs]
    for pattern in patterns:
        for subject in await ledger.subjects(pattern):
            try:
                address = subjects.parse(subject)
            except UserError:  # nothing of ours
                continue
            if address.key is not None and (address.source, address.stream) in found:
                found[address.source, address.stream][address.key] = subject
    return found


async def outputs_of(ledger: Ledger, wanted: Iterable[str], kind: type[T]) -> dict[tuple[int, int], T]:
    """What stands on these subjects, by segments: of gaps and of what cannot be read, nothing."""
    decoder = msgspec.msgpack.Decoder(kind)
    found: dict[tuple[int, int], T] = {}
    for subject, stored in (await ledger.get_many(wanted)).items():
        try:
            record = decode_result(stored.data)
            if isinstance(record, Result):
                found[record.first, record.last] = decode_output(decoder, record)
        except Malformed as error:
            log.warning("not_read", subject=subject, error=str(error))
    return found
