"""What the rule of a group is told and what it tells: events and findings in, instructions out. Values only."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.decide import joins
from engine.decide.running_graph import RunningStage
from engine.spec.operator import Fold, Map, PerRange
from engine.spec.workflow import MEDIA, WHEN
from streams.records import Gap, GapCause
from streams.subjects import Key

OPEN = -1  # last of a range that ends with the stream, while its end is not known
Output = tuple[str, Key]


# --- what comes in -----------------------------------------------------------------------------------------------


class Known(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A stored input: its place in the order of storing, when its segment is due (server's Unix time; 0: never), its
    value (None where it is a gap), and, where it was made here, when it was stored (the worker's Unix time)."""

    seq: int
    traceparent: str = ""
    value: Any = None
    gap: Gap | None = None
    due_ns: int = 0
    since_ns: int = 0


class Event(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Something is stored: a segment, a stage's output, or the end of the stream (key None). `root` is the message
    that led to it, as the shell names it."""

    source: str
    key: Key | None
    known: Known
    root: int
    num_delivered: int = 1
    since_ns: int = 0  # when it became known here (the worker's Unix time)


class Found(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a `Read` came to: of all that was asked for, what is stored."""

    inputs: Mapping[str, Mapping[int, Known]] = {}
    previous: Known | None = None
    own: Known | None = None
    end: tuple[int, int] | None = None  # where it stands in the order of storing, and the number of segments
    tails: Mapping[str, int] = {}  # by source, the sequence of the record stored last


class StageRule:
    """A stage as the rule sees it. `awaited` are the sources whose arrival may complete an output, `read_inside` says
    whether its outputs are events for its own group."""

    __slots__ = (
        "asks_own",
        "awaited",
        "id",
        "is_gated",
        "is_plain",
        "lead_ns",
        "name",
        "read_inside",
        "running",
        "scope",
        "sources",
    )

    def __init__(self, running: RunningStage, awaited: frozenset[str], read_inside: bool) -> None:
        self.running = running
        self.awaited = awaited
        self.read_inside = read_inside
        self.lead_ns = 0  # see `lateness`; kept by the shell, which knows what batches take
        self.id = running.planned.id
        self.name = running.planned.name
        self.scope = running.planned.scope
        self.sources = running.planned.sources
        self.is_gated = WHEN in running.planned.inputs
        self.is_plain = self.scope in (Map(), PerRange()) and len(self.sources) == 1
        # One arrival acts in each JetStream stream; where both can, the second looks whether the first was there.
        self.asks_own = MEDIA in awaited and len(awaited) > 1

    def says(self, other: "StageRule") -> bool:
        """Whether it is the same rule, whatever batches take."""
        return (self.running, self.awaited, self.read_inside) == (other.running, other.awaited, other.read_inside)


def rules_of(stages: Sequence[RunningStage], ancestors: dict[str, frozenset[str]]) -> list[StageRule]:
    """The stages of one group, by what their sources were made from (`engine.spec.plan.ancestors`)."""
    inside = {source for stage in stages for source in stage.planned.sources}
    return [
        StageRule(
            stage,
            frozenset(joins.awaited(stage.planned.sources, ancestors)),
            stage.id in inside or isinstance(stage.planned.scope, Fold),
        )
        for stage in stages
    ]


# --- what goes out -----------------------------------------------------------------------------------------------


class Read(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Look what is stored of these, and come back with `found`."""

    stage: StageRule
    key: Key
    event: Event
    wants: Mapping[str, range] = {}
    previous: int | None = None  # the stage's own output of that segment
    own: bool = False  # the output itself
    end: bool = False  # the end of the stream
    tails: tuple[str, ...] = ()
    rest: tuple[Key, ...] = ()  # outputs to look at behind this one
    is_probe: bool = False  # of the one input that was lacking when last looked at


class Compute(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Compute this output from these inputs, then store it and come back with `placed`, `late` or `failed`."""

    stage: StageRule
    key: Key
    event: Event
    inputs: Mapping[str, Mapping[int, Known]]
    due_ns: int  # of its segment, which is handed on with it: the server's Unix time; 0: never
    why: str
    previous: Known | None = None
    expires_ns: int = 0  # when it is too late to begin it; 0: never
    is_empty: bool = False  # its gate is shut: store the empty output, `why` says which

    @property
    def output(self) -> Output:
        return self.stage.id, self.key


class GiveGap(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Store a gap in this output's place, with a dead letter if `is_dead`, and come back with `placed`."""

    stage: StageRule
    key: Key
    event: Event
    inputs: Mapping[str, Mapping[int, Known]]
    due_ns: int  # as that of `Compute`
    cause: GapCause
    why: str
    is_dead: bool = False
    was_to_be: bool = False  # it was told to compute the output before

    @property
    def output(self) -> Output:
        return self.stage.id, self.key


class Release(msgspec.Struct, frozen=True, gc=False):
    """No stage of this group will look at this segment's media again."""

    index: int


class Acknowledge(msgspec.Struct, frozen=True, gc=False):
    """Nothing that this message set off is left to do."""

    root: int
    why: str


class Redeliver(msgspec.Struct, frozen=True, gc=False):
    """Have this message brought again after `delay_s`."""

    root: int
    delay_s: float
    why: str


Instruction = Read | Compute | GiveGap | Release | Acknowledge | Redeliver
