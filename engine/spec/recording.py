"""A recording: what came on live streams, what was computed of it and how long that took, for whoever asks what would
have happened otherwise (`engine.simulate.replaying`). Values only.
"""

import msgspec

from streams.records import Record

DECODE = "decode"  # the stage and the pool that decoding is
MAX_STREAMS = 2_000
MAX_SEGMENTS = 200_000


class RecordedPool(Record, frozen=True, omit_defaults=False):
    """A rung, and its batches: of each size how many there were, and their mean and standard deviation, s."""

    max_batch: int = 1
    runs_in: str = "thread"
    device: str = "cpu"
    num_instances: int = 1
    max_in_flight: int = 16
    batches: tuple[tuple[int, int, float, float], ...] = ()


class RecordedRung(Record, frozen=True, omit_defaults=False):
    pool: str
    quality: float = 1.0


class RecordedStage(Record, frozen=True, omit_defaults=False):
    """A stage: its rungs, the best first, what it reads, and for what share of segments its gate was open."""

    rungs: tuple[RecordedRung, ...]
    inputs: tuple[str, ...]
    share: float = 1.0


class RecordedStream(Record, frozen=True, omit_defaults=False):
    """A stream: the stages that jobs wanted of it, and when its segments came, s from the recording's beginning."""

    stages: tuple[str, ...]
    max_lag_s: float
    came_s: tuple[float, ...]
    latency_s: float = 0.0


class Outcome(Record, frozen=True, omit_defaults=False):
    """What became of the segments: how many were answered whole and in time, and how soon those were."""

    num_segments: int
    in_time: float
    p50_s: float | None = None
    p99_s: float | None = None
    quality: float = 1.0  # of those in time, against the best rungs
    num_rung_changes: int = 0


class Recording(Record, frozen=True, omit_defaults=False):
    """Of all live streams with standing jobs on a NATS server, over a while."""

    began_ns: int  # Unix time
    seconds: float
    num_cores: int
    stages: dict[str, RecordedStage]
    pools: dict[str, RecordedPool]
    streams: dict[str, RecordedStream]
    outcome: Outcome
    num_decisions: int = 0
    notices: tuple[str, ...] = msgspec.field(default_factory=tuple)
