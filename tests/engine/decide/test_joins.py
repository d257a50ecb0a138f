"""The join rule against what the scopes mean. What comes of it in any order of arrival is in test_readiness.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.joins import awaited, needs, needs_end, outputs_of, outputs_of_end
from engine.spec.operator import Fold, Map, Reduce, Scope, Window
from streams.subjects import Key

MEDIA, RESULT, END, OWN = "media", "result", "end", "own"
Name = tuple[str, int]  # an input: its source and segment; the end is ("end", 0)

SCOPES = st.one_of(
    st.builds(Map, st.integers(0, 3), st.integers(0, 3)),
    st.just(Fold()),
    st.builds(Window, st.integers(1, 4)),
    st.just(Reduce()),
)


def owed(scope: Scope, num_segments: int) -> list[Key]:
    """Every output of a stream, straight from what the scopes mean."""
    if isinstance(scope, Reduce):
        return [Key(0, num_segments - 1)] if num_segments else []
    return [Key.of(index) for index in range(num_segments)]


def inputs_of(scope: Scope, key: Key, num_segments: int, sources: tuple[str, ...]) -> set[Name]:
    """Everything an output is made from, straight from what the scopes mean; the end where it bounds the view."""
    match scope:
        case Map(before, after):
            low, high = key.first - before, key.first + after
        case Fold() | Reduce():
            low, high = key.first, key.last
        case Window(size):
            low, high = key.first - size + 1, key.first
    found = {(source, index) for source in sources for index in range(max(0, low), min(high, num_segments - 1) + 1)}
    if isinstance(scope, Reduce) or (isinstance(scope, Map) and high >= num_segments):
        found.add((END, 0))
    if isinstance(scope, Fold) and key.first > 0:
        found.add((OWN, key.first - 1))
    return found


@given(SCOPES, st.integers(1, 8), st.integers(0, 7))
def test_an_input_names_exactly_the_outputs_that_need_it(scope: Scope, num_segments: int, index: int) -> None:
    index = min(index, num_segments - 1)
    named = set(outputs_of(scope, index, num_segments))
    assert named == {key for key in owed(scope, num_segments) if index in needs(scope, key, num_segments)}
    assert named <= set(outputs_of(scope, index, None)) or isinstance(scope, Reduce)


@given(SCOPES, st.integers(0, 8))
def test_the_end_names_exactly_the_outputs_whose_view_it_bounds(scope: Scope, num_segments: int) -> None:
    bounded = {key for key in owed(scope, num_segments) if (END, 0) in inputs_of(scope, key, num_segments, (MEDIA,))}
    assert set(outputs_of_end(scope, num_segments)) == bounded
    assert needs_end(scope) or not bounded


@given(SCOPES, st.integers(0, 6), st.integers(0, 12))
def test_an_output_beyond_the_end_needs_nothing(scope: Scope, num_segments: int, beyond: int) -> None:
    assert not needs(scope, Key.of(num_segments + beyond), num_segments)


def test_needs_by_hand() -> None:
    assert needs(Map(), Key.of(3), None) == range(3, 4)
    assert needs(Map(1, 2), Key.of(0), None) == range(3)
    assert needs(Map(1, 2), Key.of(4), 5) == range(3, 5)
    assert needs(Window(3), Key.of(1), None) == range(2)
    assert needs(Window(3), Key.of(9), 10) == range(7, 10)
    assert needs(Fold(), Key.of(2), None) == range(2, 3)
    assert needs(Reduce(), Key(0, 4), 5) == range(5)


@pytest.mark.parametrize(
    ("sources", "ancestors", "expected"),
    [
        ([], {}, []),
        (["media"], {}, ["media"]),
        (["a", "b"], {}, ["a", "b"]),
        (["b", "a", "b"], {}, ["b", "a"]),
        (["media", "a"], {"a": frozenset({"media"})}, ["a"]),
        (["media", "a", "b"], {"a": frozenset({"media"}), "b": frozenset({"a", "media"})}, ["b"]),
        (["media", "a", "b"], {"a": frozenset({"media"}), "b": frozenset({"media"})}, ["a", "b"]),
        (["media", "total"], {"total": frozenset()}, ["media", "total"]),  # what is behind a reduce is not implied
    ],
)
def test_awaited(sources: list[str], ancestors: dict[str, frozenset[str]], expected: list[str]) -> None:
    assert awaited(sources, ancestors) == expected


@given(st.data())
def test_awaited_leaves_out_only_what_an_awaited_source_was_made_from(data: st.DataObject) -> None:
    names = [str(number) for number in range(6)]
    ancestors: dict[str, frozenset[str]] = {}
    for number, name in enumerate(names):
        near = data.draw(st.sets(st.sampled_from(names[:number]))) if number else set[str]()
        ancestors[name] = frozenset(near).union(*(ancestors[source] for source in near))
    sources = data.draw(st.lists(st.sampled_from(names), min_size=1))
    found = awaited(sources, ancestors)
    assert len(found) == len(set(found)) > 0
    implied = set().union(*(ancestors[source] for source in found))
    assert implied.isdisjoint(found)
    assert set(sources) <= set(found) | implied
