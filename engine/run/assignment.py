"""An assignment: where a worker works, as it is told when it starts."""

from pathlib import Path

import msgspec

from engine.decide.retry import RetryPolicy
from engine.run.profiles import Profiles

DRAIN = b"drain"  # said to a worker after its assignment: to end what it has taken, and go
BEAT = b"."  # said by a worker as long as its event loop runs
READY = b"+"  # said once it has loaded what there was to do, where there was anything


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker works; at what, the jobs of the bucket say, whatever they are at the time."""

    url: str
    store: str = ""  # of the embedded server, where it is one
    name: str = "worker"
    node: str = ""  # its id
    profiles: str = ""  # the folder of what rungs were measured to take; empty: none is looked at or kept
    machine: str = ""  # that they have to be of
    num_cores: int = 1
    has_gpu: bool = False
    ack_wait_s: float = 10.0  # silence after which the server gives a message to another worker
    retry: RetryPolicy = RetryPolicy()
    trace_file: str = ""
    log_level: str = "warning"
    log_file: str = ""  # where what it says goes from now on

    @property
    def kept_profiles(self) -> Profiles | None:
        return Profiles(Path(self.profiles), self.machine) if self.profiles else None
