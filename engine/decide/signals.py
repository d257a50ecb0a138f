"""Signals: what is known of pools and streams at one moment, for whoever decides. Values only.

The shell samples them; rules read them; they are exported as metrics under the same names. Waiting and in service stand
apart everywhere: their sum says nothing of how many hands are needed. What is not known is None, never 0.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from streams.records import Record

NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e15)]

# Upper bounds of classes of service time. Source: OpenTelemetry's advice for `messaging.process.duration`.
SERVICE_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class ServiceTime(Record, frozen=True, omit_defaults=False):
    """How long batches of one size took: over `num` of them, the mean and the longest, and how many took no longer than
    each of SERVICE_BOUNDS_S."""

    batch_size: int
    num: int
    mean_s: float
    max_s: float
    num_within: tuple[int, ...] = ()


class PoolSignals(Record, frozen=True, omit_defaults=False):
    """One pool of one worker."""

    pool: str  # capability/implementation/rung
    runs_in: str
    device: str
    max_batch: int
    num_waiting: int  # items that wait for their turn
    num_in_service: int  # items in batches that run
    num_in_flight: int  # batches that run
    max_in_flight: int
    num_instances: int  # times it is loaded
    num_patient: int = 0  # of those that wait, what is wanted whenever
    num_ahead: int = 0  # items to come, whose media are being decoded for it
    queue_wait_s: float | None = None  # mean of the last items that were taken
    service_s: float | None = None  # mean of the last batches
    service_times: tuple[ServiceTime, ...] = ()
    num_arrived: int = 0  # items, since the worker began; the counts below likewise
    num_done: int = 0
    num_failed: int = 0
    num_late: int = 0
    num_held_back: int = 0  # outputs that were not computed, for their gate was shut
    drift: float | None = None  # how long batches lately took over what the profile says
    why: str = ""  # why max_in_flight is what it is

    @property
    def wait_ahead_s(self) -> float:
        """What an item that comes now would wait, as far as is known."""
        if self.service_s is None:
            return 0.0
        batches_ahead = -(-(self.num_waiting + self.num_ahead) // self.max_batch)
        return batches_ahead * self.service_s / max(1, self.max_in_flight)


class ResourceSignals(Record, frozen=True, omit_defaults=False):
    """What batches of one worker take up: its cores, or a pool's instances on a GPU. Work in seconds of a lane. What
    came counts as it would be on the best rungs, whether or not it was begun, and since the worker began."""

    resource: str
    num_lanes: Annotated[int, Meta(ge=1)]  # batches that run at once
    num_asked: NotNegative = 0  # segments of live streams that came
    asked_s: Seconds = 0.0
    num_refused: NotNegative = 0  # of them, for want of this resource, or late when they were taken
    waiting_s: Seconds | None = 0.0  # what items of live streams take that wait in pools; None: not known
    patient_s: Seconds = 0.0  # the same, of what is wanted whenever


class StreamSignals(Record, frozen=True, omit_defaults=False):
    """One stream as one worker sees it."""

    stream: str
    num_waiting: int | None = None  # messages that the server holds for this worker's groups; None: nobody has said
    num_in_service: int = 0  # messages taken and not acknowledged
    num_stored: int = 0  # outputs, since the worker began
    gaps: dict[str, int] = msgspec.field(default_factory=dict)  # by cause, likewise
    lag_s: float | None = None  # from storing the newest input to storing what was made from it
    frame_bytes: int = 0
    cache_bytes: int = 0
    slack_s: float | None = None  # within which what comes is wanted; None: whenever
    segment_s: dict[str, float] = msgspec.field(default_factory=dict)  # what a segment takes here, by resource


class WorkerSignals(Record, frozen=True, omit_defaults=False):
    """All that one worker says at one moment."""

    worker: str
    node: str
    at_ns: int  # Unix time of the server
    pools: tuple[PoolSignals, ...] = ()
    streams: tuple[StreamSignals, ...] = ()
    frame_bytes: int = 0
    max_frame_bytes: int = 0
    num_decoded: int = 0
    decoded_by: dict[str, int] = msgspec.field(default_factory=dict)  # what decoded so many of them
    decode_s: float = 0.0  # spent decoding, since the worker began
    acks_pending: int = 0
    resources: tuple[ResourceSignals, ...] = ()
    clock_offset_s: float | None = None  # of the server against this worker
    is_ready: bool = True  # it has loaded what there was to do when it began
