"""A recording: what came on live streams, what was computed of it and how long that took, for whoever asks what would
have happened otherwise (`engine.simulate.replaying`). Values only.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from engine.spec.objective import Weight
from streams.records import Record

DECODE = "(decoding)"  # the stage and the pool that decoding is: a name that no other has
MAX_STREAMS = 2_000
MAX_SEGMENTS = 20_000  # of all streams together: each is read
MAX_STAGES = 500


Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]


class RecordedPool(Record, frozen=True, omit_defaults=False):
    """A rung, and its batches: of each size how many there were, and their mean and standard deviation, s."""

    max_batch: Annotated[int, Meta(ge=1, le=4096)] = 1
    runs_in: Literal["loop", "thread", "process", "async"] = "thread"
    device: Literal["cpu", "cuda"] = "cpu"
    num_instances: Annotated[int, Meta(ge=1, le=1024)] = 1
    max_in_flight: Annotated[int, Meta(ge=1, le=100_000)] = 16
    batches: Annotated[tuple[tuple[Count, Count, Seconds, Seconds], ...], Meta(max_length=5000)] = ()


class RecordedRung(Record, frozen=True, omit_defaults=False):
    pool: str
    quality: Annotated[float, Meta(ge=0, le=1)] = 1.0


class RecordedStage(Record, frozen=True, omit_defaults=False):
    """A stage: its rungs, the best first, what it reads, and for what share of segments its gate was open."""

    rungs: Annotated[tuple[RecordedRung, ...], Meta(min_length=1, max_length=50)]
    inputs: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100)]
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0


class RecordedStream(Record, frozen=True, omit_defaults=False):
    """A stream: the stages that jobs wanted of it, and when its segments came, s from the recording's beginning."""

    stages: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_STAGES)]
    max_lag_s: Annotated[float, Meta(gt=0, le=1e6)]
    came_s: Annotated[tuple[Seconds, ...], Meta(max_length=MAX_SEGMENTS)]
    latency_s: Seconds = 0.0
    weight: Weight = 1.0


class Outcome(Record, frozen=True, omit_defaults=False):
    """What became of the segments: how many were answered whole and in time, and how soon those were."""

    num_segments: int
    in_time: float
    p50_s: float | None = None
    p99_s: float | None = None
    quality: float = 1.0  # of those in time, against the best rungs
    num_rung_changes: int | None = None  # None: nobody has counted

    @staticmethod
    def of(num_segments: int, good: Sequence[tuple[float, float]], num_rung_changes: int | None = None) -> "Outcome":
        """Of so many segments, how long those in time took, s, and their quality."""
        took = sorted(took_s for took_s, _ in good)
        return Outcome(
            num_segments=num_segments,
            in_time=len(good) / num_segments if num_segments else 1.0,
            p50_s=took[len(took) // 2] if took else None,
            p99_s=took[min(len(took) - 1, int(0.99 * len(took)))] if took else None,
            quality=sum(quality for _, quality in good) / len(good) if good else 1.0,
            num_rung_changes=num_rung_changes,
        )


class Recording(Record, frozen=True, omit_defaults=False):
    """Of all live streams with standing jobs on a NATS server, over a while."""

    began_ns: int  # Unix time
    seconds: Annotated[float, Meta(gt=0, le=1e6)]
    num_cores: Annotated[int, Meta(ge=1, le=4096)]
    stages: Annotated[dict[str, RecordedStage], Meta(min_length=1, max_length=MAX_STAGES)]
    pools: Annotated[dict[str, RecordedPool], Meta(min_length=1, max_length=10 * MAX_STAGES)]
    streams: Annotated[dict[str, RecordedStream], Meta(min_length=1, max_length=MAX_STREAMS)]
    outcome: Outcome
    notices: tuple[str, ...] = msgspec.field(default_factory=tuple)
