"""A toy stream: what an author wrote down as plain values, as the engine would hand it to an operator.

Which inputs an output needs is not said here: it is the engine's own rule (engine.decide.joins).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.decide import joins
from engine.spec.choosing import USUAL
from engine.spec.operator import Capability, Entry, Inputs, Media, Operator, Port, Reduce, Scope
from operators.testing.film import STREAM, segments_of
from streams.errors import Permanent, UserError
from streams.records import Gap, GapCause, Segment
from streams.subjects import Key


def gap(why: str, cause: GapCause = "upstream") -> Gap:
    """An input that is missing, to be put among the values of a port."""
    return Gap(stage="", stream=STREAM, first=0, last=0, cause=cause, detail=why)


Ports = Mapping[str, tuple[tuple[Entry, ...], ...]]


@dataclass(frozen=True)
class ToyStream:
    """Every entry of every source of every port. The sources are all as long as the stream."""

    name: str
    scope: Scope
    num_segments: int
    ports: Ports

    def outputs(self) -> list[Key]:
        """The outputs that these inputs give, in order."""
        arrivals = range(self.num_segments)
        return sorted({key for index in arrivals for key in joins.outputs_of(self.scope, index, self.num_segments)})

    def inputs(self, key: Key, params: Any, previous: Any = None) -> Inputs | Gap:
        """What the operator is given for an output; the gap that the engine stores in its place where an input is
        missing at the output's own segment. A reduce is always called."""
        wanted = joins.needs(self.scope, key, self.num_segments)
        if not isinstance(self.scope, Reduce):
            for port, sources in self.ports.items():
                for source in sources:
                    if (lost := source[key.last].gap) is not None:
                        return Gap(
                            stage="",
                            stream=self.name,
                            first=key.first,
                            last=key.last,
                            cause="upstream",
                            detail=f"{port}: {lost.detail}",
                        )
        ports = {
            port: tuple(tuple(source[index] for index in wanted) for source in sources)
            for port, sources in self.ports.items()
        }
        return Inputs(self.name, key.first, key.last, params, ports, previous)

    def segments(self) -> list[Segment]:
        """All media of it."""
        entries = (entry for sources in self.ports.values() for source in sources for entry in source)
        return [entry.value.segment for entry in entries if _is_media(entry)]


def toy_stream(operator: Operator, values: Mapping[str, Any]) -> ToyStream:
    """The stream that an author wrote down. Raises UserError where it does not fit the ports of the capability."""
    capability = operator.capability
    declared = ", ".join(capability.inputs)
    if unknown := sorted(set(values) - set(capability.inputs)):
        raise UserError(f"{capability.name!r} has no port {unknown[0]!r}; its ports are {declared}")
    if missing := [name for name, port in capability.inputs.items() if name not in values and not port.optional]:
        raise UserError(f"no values for port {missing[0]!r} of {capability.name!r}; its ports are {declared}")
    given = {name: port for name, port in capability.inputs.items() if name in values}
    sources = {name: _sources(name, port, values[name]) for name, port in given.items()}
    lengths = {f"{name}[{at}]": len(each) for name, found in sources.items() for at, each in enumerate(found)}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "there are none"
        raise UserError(f"every source needs a value for each segment of the stream, or gap('why'): {said}")
    demands = operator.demands()
    ports = {
        name: tuple(_entries(capability, name, each, demands) for each in found) for name, found in sources.items()
    }
    found = (entry.value.segment.stream for each in ports.values() for one in each for entry in one if _is_media(entry))
    scope = type(operator).scope_of(operator.knobs, _segment_s(ports))
    return ToyStream(next(found, STREAM), scope, next(iter(lengths.values())), ports)


def _segment_s(ports: Ports) -> float:
    """How long the segments are: the middle one, or what is usual where there are none."""
    entries = (entry for sources in ports.values() for source in sources for entry in source)
    lengths = sorted(entry.value.segment.duration_ns for entry in entries if _is_media(entry))
    return lengths[len(lengths) // 2] / 1e9 if lengths else USUAL.segment_s


def decoded(segment: Segment, demands: Sequence[Any]) -> Media:
    """The segment with what is demanded decoded ahead, as the engine does; where it cannot be, the operator will say so
    when it asks."""
    try:
        return Media.decoded(segment, demands)
    except Permanent:
        return Media(segment)


def _is_media(entry: Entry) -> bool:
    return isinstance(entry.value, Media)


def _sources(name: str, port: Port, given: Any) -> list[Sequence[Any]]:
    """The values of each source of a port: many ports take a list of lists, or a list for one source."""
    if isinstance(given, str | Path):
        return [segments_of(given)]
    if isinstance(given, Segment | Media | Gap | msgspec.Struct) or not isinstance(given, Sequence):
        raise UserError(f"port {name!r} is given one {type(given).__name__}; give a list, one value for each segment")
    if not (port.many and all(isinstance(each, list | tuple) for each in given)):
        return [given]
    return list(given)


def _entries(capability: Capability, name: str, values: Sequence[Any], demands: tuple[Any, ...]) -> tuple[Entry, ...]:
    wanted = capability.inputs[name].type
    entries: list[Entry] = []
    for index, value in enumerate(values):
        if isinstance(value, Gap):
            entries.append(Entry(index, None, msgspec.structs.replace(value, first=index, last=index)))
            continue
        if isinstance(value, Segment):  # the list is the whole stream: it is numbered from 0
            value = decoded(value if value.index == index else msgspec.structs.replace(value, index=index), demands)
        if not isinstance(value, wanted):
            right = "a Segment, Media" if wanted is Media else wanted.__name__
            raise UserError(f"{name}[{index}] is {type(value).__name__}; give {right} or gap('why')")
        entries.append(Entry(index, value))
    return tuple(entries)
