"""How far stages are behind their source: against a count by hand, over any scopes, spans and stored outputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.arrears import has_room, nothing_comes, num_behind
from engine.decide.running_graph import RunningStage
from engine.decide.stored_keys import StoredKeys
from engine.spec.jobs import Span
from engine.spec.operator import Fold, Map, Reduce, Scope, Window
from engine.spec.plan import PlannedRung, PlannedStage
from streams.subjects import Key

RUNG = PlannedRung(implementation="x", rung="x", version=1)
WHOLE = (Span(first=0),)


def stage(id: str, *reads: str, scope: Scope | None = None, spans: tuple[Span, ...] = WHOLE) -> RunningStage:
    inputs = {"in": reads or ("media",)}
    planned = PlannedStage(id=id, name=id, capability="x", rung=RUNG, scope=scope or Map(), group="g", inputs=inputs)
    return RunningStage(planned=planned, spans=spans)


def stored(*indices: int) -> StoredKeys:
    found = StoredKeys()
    for index in indices:
        found.add(Key.of(index))
    return found


@pytest.mark.parametrize(
    ("stages", "there", "num_segments", "since", "behind"),
    [
        ([], {}, 100, 0, {}),
        ([stage("a")], {}, 100, 0, {"a": 100}),  # nothing known is nothing done
        ([stage("a")], {"a": range(100)}, 100, 0, {"a": 0}),
        ([stage("a"), stage("b", "a")], {"a": range(100), "b": range(7)}, 100, 0, {"a": 0, "b": 93}),
        ([stage("a", scope=Map(1, 2))], {"a": range(98)}, 100, 0, {"a": 0}),  # the last two look ahead
        ([stage("a", scope=Map(0, 2)), stage("b", "a", scope=Map(0, 1))], {"a": range(98)}, 100, 0, {"a": 0, "b": 97}),
        ([stage("a", spans=(Span(first=90),))], {}, 100, 0, {"a": 10}),
        ([stage("a", spans=(Span(first=2, last=4), Span(first=8, last=9)))], {"a": [3]}, 100, 0, {"a": 4}),
        ([stage("a"), stage("r", "a", scope=Reduce())], {"a": range(100)}, 100, 0, {"a": 0, "r": 0}),
        ([stage("a")], {"a": [99]}, 100, 60, {"a": 39}),  # what is gone is no debt
        ([stage("a", scope=Map(0, 9))], {}, 4, 0, {"a": 0}),
    ],
)
def test_how_far_behind(
    stages: list[RunningStage], there: dict[str, range], num_segments: int, since: int, behind: dict[str, int]
) -> None:
    assert num_behind(stages, {id: stored(*some) for id, some in there.items()}, num_segments, since) == behind


scopes = st.one_of(
    st.builds(Map, st.integers(0, 3), st.integers(0, 3)), st.builds(Window, st.integers(1, 4)), st.just(Fold())
)
spans_of_one = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), min_size=1, max_size=3).map(
    lambda parts: tuple(_apart(parts))
)


def _apart(parts: list[tuple[int, int, bool]]) -> list[Span]:
    """Spans that do not touch, as those of a running stage; only the last may be open."""
    found, at = [], 0
    for number, (gap, length, is_open) in enumerate(parts):
        first = at + gap
        last = None if is_open and number == len(parts) - 1 else first + length
        found.append(Span(first=first, last=last))
        at = first + length + 2
    return found


@given(
    st.lists(st.tuples(scopes, spans_of_one, st.sets(st.integers(0, 40)), st.integers(0, 9)), min_size=1, max_size=5),
    st.integers(0, 40),
    st.integers(0, 20),
)
def test_it_is_the_count_of_what_could_be_there_and_is_not(
    parts: list[tuple[Scope, tuple[Span, ...], set[int], int]], num_segments: int, since: int
) -> None:
    stages: list[RunningStage] = []
    there: dict[str, StoredKeys] = {}
    possible: dict[str, set[int]] = {"media": set(range(num_segments))}
    expected: dict[str, int] = {}
    for number, (scope, spans, indices, which) in enumerate(parts):
        id = f"s{number}"
        reads = ["media", *(f"s{before}" for before in range(number))][which % (number + 1)]
        stages.append(stage(id, reads, scope=scope, spans=spans))
        there[id] = stored(*indices)
        ahead = scope.after if isinstance(scope, Map) else 0
        possible[id] = {index for index in possible[reads] if index + ahead in possible[reads]}
        owed = {i for i in possible[id] if i >= since and any(span.holds(i) for span in spans)}
        expected[id] = len(owed - indices)
    assert num_behind(stages, there, num_segments, since) == expected
    assert max(num_behind(stages, {}, num_segments, since).values()) >= max(expected.values())


@pytest.mark.parametrize(
    ("behind", "expected"), [({}, True), ({"a": 0, "b": 56}, True), ({"a": 57, "b": 0}, False), ({"a": 1000}, False)]
)
def test_a_source_waits_for_the_stage_furthest_behind(behind: dict[str, int], expected: bool) -> None:
    assert has_room(behind) is expected


@pytest.mark.parametrize(
    ("behind", "idle", "expected"),
    [({"a": 9}, set(), False), ({"a": 9}, {"a"}, True), ({"a": 9, "b": 1}, {"a"}, False), ({"a": 0}, set(), True)],
)
def test_nothing_comes_of_stages_that_have_acknowledged_all(
    behind: dict[str, int], idle: set[str], expected: bool
) -> None:
    assert nothing_comes(behind, idle) is expected
