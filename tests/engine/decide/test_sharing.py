"""What of what a new job asks is asked for already, and what of it is stored."""

import pytest
from histories import planned
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.running_graph import RunningStage
from engine.decide.sharing import is_covered, lacks
from engine.spec.jobs import Span
from engine.spec.operator import Map
from streams.subjects import Key


def running(*spans: tuple[int, int | None]) -> RunningStage:
    return RunningStage(
        planned=planned("s", Map(), ("media",), "g"), spans=tuple(Span(first=first, last=last) for first, last in spans)
    )


@pytest.mark.parametrize(
    ("others", "asked", "covered"),
    [
        ([(0, None)], [(5, None)], True),
        ([(0, None)], [(5, 9), (2, 3)], True),
        ([(5, None)], [(4, 9)], False),
        ([(0, 9)], [(0, 9)], True),
        ([(0, 9)], [(0, 10)], False),
        ([(0, 9)], [(3, None)], False),
        ([(0, 4), (5, 9)], [(3, 6)], False),  # spans that touch are one, merged
    ],
)
def test_what_is_asked_for_already(
    others: list[tuple[int, int | None]], asked: list[tuple[int, int | None]], covered: bool
) -> None:
    spans = [Span(first=first, last=last) for first, last in asked]
    assert is_covered(running(*others), spans) is covered
    assert not is_covered(None, spans)


@given(
    st.sets(st.integers(0, 12)),
    st.lists(st.tuples(st.integers(0, 12), st.none() | st.integers(0, 12)), min_size=1, max_size=4),
    st.none() | st.integers(1, 12),
)
def test_what_is_lacking(stored: set[int], asked: list[tuple[int, int | None]], num_segments: int | None) -> None:
    spans = [Span(first=first, last=last) for first, last in asked]
    keys = {Key.of(index) for index in stored}
    wanted: set[int] = set()
    is_open = False
    for first, last in asked:
        if last is None and num_segments is None:
            is_open = True
        else:
            wanted |= set(range(first, (num_segments or 0) if last is None else last + 1))
    assert lacks(spans, keys, num_segments, reduces=False) is (is_open or bool(wanted - stored))


def test_a_range_is_one_output() -> None:
    spans = [Span(first=2, last=5)]
    assert lacks(spans, {Key.of(index) for index in range(9)}, 9, reduces=True)
    assert not lacks(spans, {Key(2, 5)}, 9, reduces=True)
    assert not lacks([Span(first=2)], {Key(2, 8)}, 9, reduces=True)


def test_a_range_said_to_be_endless_is_counted_by_what_is_stored() -> None:
    stored = {Key.of(index) for index in range(5)}
    assert lacks([Span(first=0)], stored, 10**9, reduces=False)
    assert lacks([Span(first=0, last=10**9 - 1)], stored, None, reduces=False)
    assert not lacks([Span(first=1, last=3)], stored, None, reduces=False)
