"""What an output lacks, by tables: what must be computed first, and what nobody can compute."""

from collections.abc import Collection

import pytest

from engine.decide.lacking import lacking
from engine.spec.operator import Fold, Map, Reduce, Scope, Window
from engine.spec.plan import PlannedRung, PlannedStage
from streams.subjects import Key

RUNG = PlannedRung(implementation="x", rung="x", version=1)


def stage(id: str, *reads: str, scope: Scope | None = None) -> PlannedStage:
    inputs = {"in": reads or ("media",)}
    return PlannedStage(id=id, name=id, capability="x", rung=RUNG, scope=scope or Map(), group="g", inputs=inputs)


def one(*indices: int) -> set[Key]:
    return {Key.of(index) for index in indices}


CHAIN = [stage("a"), stage("b", "a")]
TOTAL = [*CHAIN, stage("t", "b", scope=Reduce())]
HALO = [stage("a"), stage("b", "a", scope=Map(1, 1))]
WINDOW = [stage("a"), stage("w", "a", scope=Window(3))]
FOLD = [stage("a"), stage("f", "a", scope=Fold())]
BOTH = [stage("a"), stage("b", "a", "media")]


@pytest.mark.parametrize(
    ("stages", "key", "stored", "media", "computable", "lost"),
    [
        (CHAIN, Key.of(2), {}, range(5), {"a": one(2), "b": one(2)}, {}),
        (CHAIN, Key.of(2), {"a": one(2)}, range(5), {"b": one(2)}, {}),
        (CHAIN, Key.of(2), {"a": one(2)}, [], {"b": one(2)}, {}),  # what it reads is stored: no media are needed
        (CHAIN, Key.of(2), {"a": one(2), "b": one(2)}, range(5), {}, {}),
        (CHAIN, Key.of(2), {}, [3, 4], {}, {"a": one(2), "b": one(2)}),
        (BOTH, Key.of(2), {"a": one(2)}, [3, 4], {}, {"b": one(2)}),
        (TOTAL, Key(0, 4), {"b": one(0, 1, 2, 4)}, range(5), {"a": one(3), "b": one(3), "t": {Key(0, 4)}}, {}),
        (
            TOTAL,
            Key(0, 4),
            {"b": one(1, 2, 4)},
            range(1, 5),
            {"a": one(3), "b": one(3), "t": {Key(0, 4)}},
            {"a": one(0), "b": one(0)},
        ),
        (HALO, Key.of(2), {}, range(5), {"a": one(1, 2, 3), "b": one(2)}, {}),
        (HALO, Key.of(2), {}, [2, 3], {"a": one(2, 3), "b": one(2)}, {"a": one(1)}),  # a neighbour may be lacking
        (HALO, Key.of(4), {}, range(5), {"a": one(3, 4), "b": one(4)}, {}),  # nothing is beyond the end
        (WINDOW, Key.of(4), {"a": one(4)}, range(5), {"a": one(2, 3), "w": one(4)}, {}),
        (FOLD, Key.of(3), {"f": one(0)}, range(5), {"a": one(1, 2, 3), "f": one(1, 2, 3)}, {}),
    ],
)
def test_what_an_output_lacks(
    stages: list[PlannedStage],
    key: Key,
    stored: dict[str, set[Key]],
    media: Collection[int],
    computable: dict[str, set[Key]],
    lost: dict[str, set[Key]],
) -> None:
    found = lacking(stages, stages[-1].id, key, stored, media, 5)
    assert (found.computable, found.lost) == (computable, lost)


def test_an_output_made_from_more_than_can_be_read_is_lost() -> None:
    found = lacking(TOTAL, "t", Key(0, 10**9 - 1), {}, range(5), 10**9)
    assert (found.computable, found.lost) == ({}, {"t": {Key(0, 10**9 - 1)}})
