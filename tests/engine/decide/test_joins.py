"""The join rule in every order of arrival, over a toy ledger: two JetStream streams, each with its own sequences."""

from dataclasses import dataclass, field
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.decide.joins import acts, awaited, needs, needs_end, outputs_of, outputs_of_end, outputs_of_own
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
ALL_SCOPES = [Map(), Map(1, 0), Map(0, 1), Map(1, 1), Map(2, 1), Fold(), Window(1), Window(2), Window(3), Reduce()]


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


def kept_in(source: str) -> str:
    """The JetStream stream that keeps a source's records."""
    return MEDIA if source in (MEDIA, END) else RESULT


@dataclass
class ToyLedger:
    """What is stored, and the place of each record in the order of its JetStream stream."""

    seqs: dict[Name, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=lambda: {MEDIA: 0, RESULT: 0})

    def put(self, name: Name) -> bool:
        if name in self.seqs:
            return False
        self.last[kept_in(name[0])] += 1
        self.seqs[name] = self.last[kept_in(name[0])]
        return True


@dataclass
class ToyStage:
    """A stage that follows the join rule and notes which arrivals acted."""

    scope: Scope
    num_segments: int
    sources: tuple[str, ...]
    ledger: ToyLedger
    random: Random
    acted: dict[Key, set[Name]] = field(default_factory=dict)  # by output: the distinct messages that acted

    def arrive(self, name: Name) -> list[Name]:
        """Deliver a stored record; the outputs that this stored are events that follow."""
        source, index = name
        seen = self.num_segments if (END, 0) in self.ledger.seqs else None
        known = self.random.choice([None, seen])  # a worker learns of the end when it hears or asks
        if source == END:
            keys = outputs_of_end(self.scope, self.num_segments)
        elif source == OWN:
            keys = outputs_of_own(self.scope, Key.of(index), known)
        else:
            keys = outputs_of(self.scope, index, seen if isinstance(self.scope, Reduce) else known)
        return [event for key in keys if (event := self.complete(key, name, seen, known)) is not None]

    def complete(self, key: Key, name: Name, seen: int | None, known: int | None) -> Name | None:
        end = seen if needs_end(self.scope) else self.random.choice([known, seen])
        wanted: set[Name] = {(source, index) for source in self.sources for index in needs(self.scope, key, end)}
        if not wanted:
            return None
        if isinstance(self.scope, Fold) and key.first > 0:
            wanted.add((OWN, key.first - 1))
        if not wanted <= self.ledger.seqs.keys():
            return None
        wanted |= inputs_of(self.scope, key, self.num_segments, self.sources) & {(END, 0)}
        stream = kept_in(name[0])
        alike = [self.ledger.seqs[each] for each in wanted if kept_in(each[0]) == stream]
        if not acts(self.ledger.seqs[name], alike):
            return None
        assert key in owed(self.scope, self.num_segments), "an output that does not exist"
        assert inputs_of(self.scope, key, self.num_segments, self.sources) <= self.ledger.seqs.keys(), "too early"
        self.acted.setdefault(key, set()).add(name)
        own = (OWN, key.first)
        return own if self.ledger.put(own) and isinstance(self.scope, Fold) else None


def inputs(num_segments: int, sources: tuple[str, ...]) -> list[Name]:
    return [(source, index) for source in sources for index in range(num_segments)] + [(END, 0)]


def run(scope: Scope, num_segments: int, sources: tuple[str, ...], order: list[Name], random: Random) -> ToyStage:
    """Store in this order; deliver late, in any order, and some of it twice."""
    ledger = ToyLedger()
    stage = ToyStage(scope, num_segments, sources, ledger, random)
    to_store, to_deliver = list(order), list[Name]()
    while to_store or to_deliver:
        if to_store and (not to_deliver or random.random() < 0.5):
            name = to_store.pop(0)
            if ledger.put(name):  # a duplicate is refused, so it never arrives
                to_deliver.append(name)
            continue
        name = to_deliver.pop(random.randrange(len(to_deliver)) if random.random() < 0.7 else 0)
        if random.random() < 0.2:
            to_deliver.append(name)
        to_deliver += stage.arrive(name)
    return stage


def check(stage: ToyStage) -> None:
    """Every output was computed, once for each JetStream stream at most, by the last of its inputs there."""
    seqs = stage.ledger.seqs
    assert set(stage.acted) == set(owed(stage.scope, stage.num_segments))
    for key, actors in stage.acted.items():
        needed = inputs_of(stage.scope, key, stage.num_segments, stage.sources)
        streams = {kept_in(source) for source, _ in needed}
        assert len(actors) == len({kept_in(source) for source, _ in actors}) <= len(streams)
        for actor in actors:
            assert actor == max((n for n in needed if kept_in(n[0]) == kept_in(actor[0])), key=lambda n: seqs[n])


@pytest.mark.parametrize("sources", [(MEDIA,), (RESULT,), (MEDIA, RESULT), ("result", "result-2")], ids="+".join)
@given(scope=SCOPES, num_segments=st.integers(0, 7), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_output_is_computed_by_the_last_of_its_inputs(
    sources: tuple[str, ...], scope: Scope, num_segments: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(inputs(num_segments, sources)))
    duplicates = data.draw(st.lists(st.sampled_from(order), max_size=4))
    seed = data.draw(st.integers(0, 2**32))
    check(run(scope, num_segments, sources, order + duplicates, Random(seed)))


@pytest.mark.parametrize("sources", [(MEDIA,), (RESULT,), (MEDIA, RESULT)], ids="+".join)
@pytest.mark.parametrize("scope", ALL_SCOPES, ids=str)
def test_every_order_of_storing_a_short_stream(scope: Scope, sources: tuple[str, ...]) -> None:
    num_segments = 4 if len(sources) == 1 else 2
    for number, order in enumerate(permutations(inputs(num_segments, sources))):
        check(run(scope, num_segments, sources, list(order), Random(number)))


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
