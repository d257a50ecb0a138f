"""What a source is doing, by what was heard of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.watching import GONE_S, Heard, SourceState, State, failed_state, source_state

S = 10**9
BUDGET_S = 15.0


def at(now_s: float, before: SourceState | None = None, *, goes_on: bool = True, **heard: object) -> SourceState:
    said = Heard(**{"began_ns": 0, **heard})  # type: ignore[arg-type]
    return source_state(before, said, round(now_s * S), stream="s", node="n", budget_s=BUDGET_S, goes_on=goes_on)


@pytest.mark.parametrize(
    ("now_s", "heard", "state", "since_s", "error"),
    [
        (1, {}, "connecting", 0, ""),
        (30, {"told": "lost", "detail": "404"}, "connecting", 0, "404"),
        (61, {"told": "lost", "detail": "404"}, "gone", 0, "404"),
        (5, {"last_ns": 4 * S, "told": "reading"}, "live", 5, ""),
        (12, {"last_ns": 4 * S, "told": "lost", "detail": "reset"}, "live", 12, "reset"),
        (20, {"last_ns": 4 * S, "told": "reading"}, "silent", 4, ""),
        (20, {"last_ns": 4 * S, "told": "lost", "detail": "reset"}, "silent", 4, "reset"),
        (65, {"last_ns": 4 * S, "told": "reading"}, "gone", 4, ""),
    ],
)
def test_a_camera(now_s: float, heard: dict[str, object], state: State, since_s: float, error: str) -> None:
    found = at(now_s, **heard)
    assert (found.state, found.since_ns, found.error) == (state, since_s * S, error)


def test_a_recording_is_fed_however_long_it_is_held_back() -> None:
    assert at(1, goes_on=False).state == "connecting"
    assert at(10**6, goes_on=False, last_ns=S).state == "fed"


def test_a_state_holds_since_it_was_entered() -> None:
    first = at(5, last_ns=4 * S)
    assert at(9, first, last_ns=8 * S).since_ns == 5 * S
    failed = failed_state("s", "n", 7 * S, "no such file", None)
    assert failed_state("s", "n", 9 * S, "no such file", failed).since_ns == 7 * S


def test_the_last_error_stays_while_it_is_tried_again_and_goes_when_it_is_back() -> None:
    lost = at(20, last_ns=4 * S, told="lost", detail="reset")
    trying = at(21, lost, last_ns=4 * S, told="connecting")
    assert trying.error == "reset"
    assert at(22, trying, last_ns=22 * S, told="reading").error == ""


@given(st.lists(st.integers(0, 200), max_size=20), st.integers(0, 300))
def test_it_is_live_only_within_its_budget(heard_s: list[int], now_s: int) -> None:
    last_s = max((each for each in heard_s if each <= now_s), default=0)
    state = at(now_s, last_ns=last_s * S).state
    assert (state == "live") == (last_s > 0 and now_s - last_s <= BUDGET_S)
    if state == "gone":
        assert now_s - last_s > GONE_S
