"""Fair shares: by weight, up to all of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.fair import FairShares

SHARES = st.floats(0, 1)
STREAMS = st.lists(st.tuples(SHARES, st.sampled_from([0.01, 0.5, 1.0, 2.0, 100.0])), min_size=1, max_size=20)


def shares(*streams: tuple[float, float]) -> FairShares:
    made = FairShares()
    for share, weight in streams:
        made.add(share, weight)
    return made


@pytest.mark.parametrize(
    ("streams", "fair"),
    [
        ([(0.2, 1), (0.6, 1)], {1: 0.4}),  # of equals the mean
        ([(0.2, 5), (0.6, 5)], {5: 0.4}),
        ([(0.5, 1), (0.25, 2)], {1: 0.25, 2: 0.5}),
        ([(1.0, 1), (0.5, 10)], {1: 0.5, 10: 1.0}),  # it has no use for more
        ([(1.0, 1), (1.0, 0.1)], {1: 1.0, 0.1: 1.0}),  # all is begun
        ([(0.0, 1), (0.0, 3)], {1: 0.0, 3: 0.0}),
    ],
)
def test_as_worked_out_by_hand(streams: list[tuple[float, float]], fair: dict[float, float]) -> None:
    made = shares(*streams)
    assert {weight: made.of(weight) for weight in fair} == pytest.approx(fair)


@given(STREAMS, STREAMS)
def test_they_add_up_to_what_is_begun_and_no_one_of_more_weight_has_less(
    streams: list[tuple[float, float]], gone: list[tuple[float, float]]
) -> None:
    made = shares(*streams, *gone)
    for each in gone:
        made.remove(*each)
    assert len(made) == len(streams)
    fair = [(weight, made.of(weight)) for _, weight in streams]
    assert sum(share for _, share in fair) == pytest.approx(sum(share for share, _ in streams), abs=1e-6)
    assert all(-1e-9 <= share <= 1 for _, share in fair)
    in_order = [share for _, share in sorted(fair)]
    assert in_order == sorted(in_order)


@given(STREAMS, st.floats(0.1, 10))
def test_only_how_weights_compare_matters(streams: list[tuple[float, float]], times: float) -> None:
    one, other = shares(*streams), shares(*((share, times * weight) for share, weight in streams))
    assert [one.of(w) for _, w in streams] == pytest.approx([other.of(times * w) for _, w in streams], abs=1e-6)
