"""Which outputs are stored: as a set has it, in as few stretches as can be."""

from hypothesis import given
from hypothesis import strategies as st

from engine.decide.stored_keys import MAX_RANGES, StoredKeys
from streams.subjects import Key


@given(st.lists(st.integers(0, 40), max_size=60))
def test_it_holds_what_a_set_holds_in_as_few_stretches_as_can_be(indices: list[int]) -> None:
    stored = StoredKeys()
    seen: set[int] = set()
    for index in indices:
        stored.add(Key.of(index))
        seen.add(index)
        assert {i for i in range(-1, 43) if i >= 0 and Key.of(i) in stored} == seen
    assert all(stored.num_within(a, b) == len(seen & set(range(a, b))) for a in range(42) for b in range(42))
    assert stored.num_stretches == sum(index - 1 not in seen for index in seen)


def test_a_range_is_not_its_segments_and_old_ranges_are_forgotten() -> None:
    stored = StoredKeys()
    stored.add(Key(0, 5))
    assert Key(0, 5) in stored
    assert Key.of(3) not in stored
    for last in range(10, 10 + MAX_RANGES):
        stored.add(Key(0, last))
    assert Key(0, 5) not in stored
    assert Key(0, 10) in stored
