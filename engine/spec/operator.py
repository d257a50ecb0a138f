"""What an operator is: the contract between the engine and the code of an implementation.

An operator is synchronous, batched, typed in and out, and knows nothing of NATS, clocks or retries. It raises
`Transient` or `Permanent` and never returns half a result. The engine calls `load` once per process and then
`process` from one thread at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import msgspec

from streams.records import Gap, MediaInfo, Segment


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a capability or knobs of an implementation: immutable, unknown keys refused."""


# --- scopes: how a stage reads its input -------------------------------------------------------------------


class Map(msgspec.Struct, frozen=True, tag="map"):
    """Output n reads input n and, as a halo, `before` and `after` neighbours (fewer at the stream's ends)."""

    before: int = 0
    after: int = 0


class Fold(msgspec.Struct, frozen=True, tag="fold"):
    """Output n reads input n and the stage's own output n-1."""


class Window(msgspec.Struct, frozen=True, tag="window"):
    """Output n reads inputs n-size+1 .. n (fewer at the stream's start)."""

    size: int


class Reduce(msgspec.Struct, frozen=True, tag="reduce"):
    """One output for a whole range of segments."""


class PerRange(msgspec.Struct, frozen=True, tag="per_range"):
    """One output for each that its source made of a range. The plan gives it to a map of one source that reduces; no
    operator has it by itself."""


Scope = Map | Fold | Window | Reduce | PerRange
OfRanges = Reduce | PerRange  # whose outputs stand for ranges of segments


# --- what can be asked ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a capability. `type` is `Media` or an output type; a subclass of it is accepted too.
    `many` ports take any number of sources; an `optional` one may have none, and is not among an output's `ports`
    then."""

    type: type
    many: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Capability:
    """What can be asked: its typed inputs, its output and the parameters that say what (never how)."""

    name: str
    inputs: Mapping[str, Port]
    output: type[msgspec.Struct]
    params: type[Settings] = Settings


# --- what an operator is given -------------------------------------------------------------------------------


class Product(Protocol):
    """What a decoder made of a segment. It may say in `path`, a string, what decoded it, such as "software h264"."""

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""


class Demand(Hashable, Protocol):
    """What an operator asks of the decoder of its media, such as small pictures or sound. Its class may say in `track`
    what kind of track that is made from, "audio" or "video"."""

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence[Any]) -> Mapping[Any, Product]:
        """Everything that is wanted of this kind, by one decode. Raises Permanent where none can be had."""


@dataclass(frozen=True, slots=True)
class Media:
    """A segment as operators see it, with what was decoded of it ahead of them, by demand. The products are shared and
    must not be changed."""

    segment: Segment
    products: Mapping[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def decoded(segment: Segment, demands: Sequence[Demand]) -> "Media":
        """With all that is demanded, by one decode for each kind of demand. Raises Permanent as that does."""
        products: dict[Any, Any] = {}
        for kind, wanted in by_kind(demands).items():
            products |= kind.decode(segment, wanted)
        return Media(segment, products)


def by_kind(demands: Sequence[Demand]) -> dict[type[Demand], list[Demand]]:
    """Each demand once, those that one decode serves together."""
    kinds: dict[type[Demand], list[Demand]] = {}
    for demand in dict.fromkeys(demands):
        kinds.setdefault(type(demand), []).append(demand)
    return kinds


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One input at one segment: `value` is `Media` or the source stage's output; None where there is a gap."""

    index: int
    value: Any = None
    gap: Gap | None = None


class Inputs(msgspec.Struct, frozen=True, gc=False):
    """Everything one output is computed from.

    `ports[name]` has one tuple for each source of the port (one, unless the port is `many`), each with the entries of
    the scope in order of segment. For a map without halo that is a single entry.
    """

    stream: str
    first: int  # the output's segment, or the first of its range
    last: int
    params: Any  # the capability's params struct
    ports: Mapping[str, tuple[tuple[Entry, ...], ...]]
    previous: Any = None  # fold only: the stage's own output n-1; None at n = 0 or after a gap

    def around(self, port: str) -> tuple[Entry, ...]:
        """All entries of a single-source port, in order of segment."""
        (entries,) = self.ports[port]
        return entries

    def here(self, port: str) -> Any:
        """The value of a single-source port at the output's own segment. Never None: the engine answers a gap there
        with a gap and does not call the operator."""
        for entry in self.around(port):
            if entry.index == self.last:
                return entry.value
        raise LookupError(f"nothing of {port!r} is known at segment {self.last}")


# --- what can do it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rung:
    """One implementation with one setting of its output-affecting knobs. `quality` in 0..1 orders rungs of one
    capability, whoever implements them; say in the operator where the figure comes from."""

    name: str
    quality: float
    knobs: Settings


@dataclass(frozen=True, slots=True)
class Machine:
    """What the rung may count on here."""

    num_cores: int
    has_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """Where an operator is loaded."""

    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0
    num_threads: int = 1  # how many threads the operator may use inside one call


class Emit(Protocol):
    """Publishes text as it comes, to those who listen; it may be lost."""

    def __call__(self, text: str, *, anew: bool = False) -> None:
        """`anew`: what came before does not hold, and the text begins again with this."""


class Operator(ABC):
    """One implementation of a capability."""

    capability: ClassVar[Capability]
    name: ClassVar[str]  # of the implementation, unique within the capability
    version: ClassVar[int] = 1  # raise it whenever the same inputs would give another output
    scope: ClassVar[Scope] = Map()
    # process: it holds the GIL while it works; async: it batches by itself, and has `process_one`
    runs_in: ClassVar[Literal["loop", "thread", "process", "async"]] = "thread"
    max_batch: ClassVar[int] = 1
    max_in_flight: ClassVar[int] = 16  # async: items at once
    num_instances: ClassVar[int] = 1  # on a GPU: how often the model is loaded in one worker
    timeout_s: ClassVar[float] = 120.0  # of one call of process
    devices: ClassVar[tuple[Literal["cpu", "cuda"], ...]] = ("cpu",)  # where it can run, best first

    Knobs: ClassVar[type[Settings]] = Settings

    def __init__(self, knobs: Any) -> None:
        self.knobs = knobs

    @classmethod
    @abstractmethod
    def rungs(cls) -> Sequence[Rung]:
        """The settings this implementation offers, best first."""

    @classmethod
    def scope_of(cls, knobs: Any, segment_s: float) -> Scope:
        """How this rung reads a stream whose segments are about `segment_s` long: `scope`, but for one that looks some
        time around a segment, however many segments that are. Pure."""
        return cls.scope

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        """Why this rung cannot run here on this input, in one line; None where it can. Answers within 3 s."""
        return None

    @classmethod
    def cannot(cls, knobs: Any, params: Any) -> str | None:
        """Why this rung cannot do what these parameters of the capability ask, in one line; None where it can. Pure."""
        return None

    @classmethod
    def reads(cls, knobs: Any) -> frozenset[str] | None:
        """The ports of the capability that this rung looks at; None: all of them. Stages that only feed others are not
        computed, and a rung that looks at a port which a stage does not have is none for that stage. Pure."""
        return None

    @classmethod
    def in_flight(cls, knobs: Any) -> int:
        """Of one that runs in "async": how many items this rung may be given at once. Fewer are where more would not
        pay (`engine.decide.inflight`). Pure, but for looking up what the machine's owner allows."""
        return cls.max_in_flight

    @classmethod
    def shared_work(cls, knobs: Any, inputs: "Inputs") -> frozenset[Hashable]:
        """Names of pieces of work of this item that other items may want as well, for an operator that keeps what it
        did lately: items that name the same are put into one batch, and never run side by side. A piece of work comes
        to an end: what every item names would have all of them run one behind the other."""
        return frozenset()

    def demands(self) -> tuple[Demand, ...]:
        """What is to be decoded of its media inputs ahead of `process` (see operators.media)."""
        return ()

    def demands_for(self, inputs: "Inputs") -> tuple[Demand, ...]:
        """What is to be decoded for one output, where its other inputs say which: of the kinds of `demands`. Pure."""
        return self.demands()

    def forget(self) -> None:  # noqa: B027 - many operators keep nothing
        """Forget what was kept of earlier items, so that the next ones are computed anew: for whoever measures how long
        that takes. Weights stay loaded. Called while others of its kind may compute."""

    def load(self, device: Device) -> None:  # noqa: B027 - many operators have nothing to load
        """Load weights and warm up. Raises Transient or Permanent."""

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        """One output of the capability's output type for each item, in order. Deterministic: same inputs and knobs,
        same output, whatever else is in the batch. Every operator has it but those that run in "async"."""
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    async def process_one(self, inputs: Inputs, emit: Emit) -> msgspec.Struct:
        """The output for one item, of operators that run in "async": they are given up to `max_in_flight` items at
        once and batch by themselves. Canceled where nobody wants the output any more: pass that on to whatever
        computes."""
        raise NotImplementedError(f"{type(self).__name__} has no process_one()")


def shares_work(operator: type[Operator]) -> bool:
    """Whether its items may share pieces of work."""
    own = getattr(operator.shared_work, "__func__", None)  # None of a static method
    return own is not Operator.shared_work.__func__  # type: ignore[attr-defined]
