"""What a user says of how soon and how good answers are to be."""

import pytest

from engine.spec.objective import LEVELS, Objective, objective_of
from streams.errors import UserError


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ((), Objective()),
        (("latency<2s",), Objective(2.0, 1.0)),
        (("latency <= 800ms", "quality >= good"), Objective(0.8, LEVELS["good"])),
        (("quality>0.65", "latency<1.5"), Objective(1.5, 0.65)),
        (("latency<2s", "quality>=any"), Objective(2.0, 0.0)),
    ],
)
def test_bounds_are_read_in_any_order(said: tuple[str, ...], meant: Objective) -> None:
    assert objective_of(said) == meant


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("fast",), "slo 'fast': give latency<2s or quality>=good"),
        (("latency>2s",), "give latency<2s or quality>=good"),
        (("quality<0.5",), "give latency<2s or quality>=good"),
        (("cost<3",), "give latency<2s or quality>=good"),
        (("latency<soon",), "give a time such as latency<2s or latency<800ms"),
        (("latency<0s",), "give a time such as"),
        (("latency<nan",), "give a time such as"),
        (("latency<1e9s",), "of a day at most"),
        (("latency<2s", "quality>=superb"), "give best, good, fair, any, or a share of the best from 0 to 1"),
        (("latency<2s", "quality>=1.5"), "a share of the best from 0 to 1"),
        (("latency<2s", "quality>=nan"), "a share of the best from 0 to 1"),
        (("latency<2s", "latency<3s"), "latency is bounded twice: give it once"),
        (("quality>=good",), "give latency as well"),
        (("latency<" + "9" * 10_000,), "latency"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_what_would_be_right(said: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError) as refused:
        objective_of(said)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
