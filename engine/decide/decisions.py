"""Decisions: what the control loops changed, with what they went by and why. Values only.

| loop | what |
|---|---|
| `rungs` | a stage of a stream runs on another rung from now on |
| `held up` | what is left of a segment is done on another rung, for it was held up on its way |
| `passage` | a segment is not begun: it could not be done in time |
| `in flight` | so many items of what batches by itself are under way at most |
| `fleet` | there are to be so many workers |
| `profile` | batches take other than what was measured |
"""

from collections.abc import Callable
from typing import Literal

import msgspec

from streams.records import Record

Loop = Literal["rungs", "held up", "passage", "in flight", "fleet", "profile"]


class Decision(Record, frozen=True, omit_defaults=False):
    """One change. `inputs` are the figures that it was made by, in the units that their names say."""

    at_ns: int  # Unix time
    loop: Loop
    what: str
    why: str
    stream: str = ""
    segment: str = ""
    stage: str = ""
    pool: str = ""
    inputs: dict[str, float] = msgspec.field(default_factory=dict)
    worker: str = ""


OnDecision = Callable[[Decision], None]
