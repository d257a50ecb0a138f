"""What a source is doing, by what was heard of it: the rule behind the state of a stream. Pure.

| state | a source that goes on (a camera) | a recording |
|---|---|---|
| `connecting` | not reached yet | the same |
| `live` / `fed` | gives segments | the same: it is read as fast as it is wanted |
| `silent` | nothing for longer than its budget: lag and one segment | |
| `gone` | nothing for GONE_S, and for longer than its budget | it cannot be read |

Since when: a state holds from the moment at which it was entered; silence, and being gone, from the last segment.
"""

from typing import Literal

from streams.records import Record

GONE_S = 60.0

Told = Literal["connecting", "reading", "lost"]  # by whoever reads it
State = Literal["connecting", "live", "fed", "silent", "gone"]


class Heard(Record, frozen=True):
    """Of a source that is being read. Times are Unix times."""

    began_ns: int  # when reading began
    last_ns: int = 0  # when the last segment was stored; 0: none was
    told: Told = "connecting"
    detail: str = ""  # why it was lost, or not reached


class SourceState(Record, frozen=True, omit_defaults=False):
    """What a source is doing."""

    stream: str
    state: State
    since_ns: int  # Unix time
    error: str = ""  # the last one, as long as it matters
    node: str = ""  # who reads it


def source_state(
    before: SourceState | None,
    heard: Heard,
    now_ns: int,
    *,
    stream: str,
    node: str,
    budget_s: float,
    goes_on: bool,
) -> SourceState:
    """What it is doing now. `budget_s`: how long after one segment the next may come, at most."""
    quiet_s = (now_ns - (heard.last_ns or heard.began_ns)) / 1e9
    error = heard.detail if heard.told == "lost" else ""
    state: State
    if not goes_on:
        state = "fed" if heard.last_ns or heard.told == "reading" else "connecting"
    elif quiet_s > max(GONE_S, budget_s):
        state = "gone"
    elif not heard.last_ns:
        state = "connecting"
    elif quiet_s > budget_s:
        state = "silent"
    else:
        state = "live"
    if state in ("silent", "gone"):
        since_ns = heard.last_ns or heard.began_ns
    elif before is not None and before.state == state:
        since_ns = before.since_ns
    else:
        since_ns = heard.began_ns if state == "connecting" else now_ns
    if before is not None and not error and state in ("silent", "gone", "connecting"):
        error = before.error  # it is being tried again
    return SourceState(stream=stream, state=state, since_ns=since_ns, error=error, node=node)


def failed_state(stream: str, node: str, now_ns: int, error: str, before: SourceState | None) -> SourceState:
    """Of a source that cannot be read."""
    since_ns = before.since_ns if before is not None and before.state == "gone" else now_ns
    return SourceState(stream=stream, state="gone", since_ns=since_ns, error=error, node=node)
