"""Where speech is cut for a recogniser of long stretches: the same cells, however a stream was segmented."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.speech.cells import Grid
from operators.speech.regions import HOP, RATE, Clip

GRID = Grid(1.0, 0.25)


def noise(seed: int, num_samples: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(seed).normal(0, 3000, num_samples).clip(-32768, 32767).astype(np.int16)


def as_heard(grid: Grid, audio: Clip, bounds: Sequence[int]) -> list[list[tuple[int, bytes]]]:
    """The cells of each segment, which sees no further than the grid reaches."""
    reach = round(grid.reach_s * RATE)
    found = []
    for first, end in pairwise(bounds):
        view = audio.between(max(audio.first, first - reach), min(audio.end, end + reach))
        found.append([(cell.first, cell.samples.tobytes()) for cell in grid.cells(view, first, end)])
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.lists(st.integers(1, 3 * RATE), min_size=1, max_size=8), st.integers(0, 99))
def test_cells_tile_the_audio_whatever_the_segments(first: int, lengths: list[int], seed: int) -> None:
    audio = Clip(first, noise(seed, sum(lengths)))
    bounds = [first, *(first + int(size) for size in np.cumsum(lengths))]
    (whole,) = as_heard(GRID, audio, [audio.first, audio.end])
    assert b"".join(samples for _, samples in whole) == audio.samples.tobytes()
    assert [start for start, _ in whole] == list(np.cumsum([first, *(len(samples) // 2 for _, samples in whole[:-1])]))
    for (start, end), cells in zip(pairwise(bounds), as_heard(GRID, audio, bounds), strict=True):
        wanted = [(at, samples) for at, samples in whole if at < end and at + len(samples) // 2 > start]
        assert cells == wanted


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 2 * RATE), min_size=2, max_size=8), st.integers(0, 99))
def test_segments_that_hear_the_same_cell_are_known_by_it_beforehand(lengths: list[int], seed: int) -> None:
    audio = Clip(0, noise(seed, sum(lengths)))
    bounds = [0, *(int(size) for size in np.cumsum(lengths))]
    known: dict[int, list[set[int]]] = {}
    for (first, end), cells in zip(pairwise(bounds), as_heard(GRID, audio, bounds), strict=True):
        for start, _ in cells:
            known.setdefault(start, []).append(set(GRID.may_hold(first / RATE, end / RATE)))
    for numbers in known.values():
        assert set.intersection(*numbers)


@pytest.mark.parametrize("grid", [GRID, Grid(4.0, 0.5)])
def test_a_cell_is_about_as_long_as_it_should_be(grid: Grid) -> None:
    audio = Clip(0, noise(3, 40 * RATE))
    cuts = [cell.first / RATE for cell in grid.cells(audio, 0, audio.end)][1:]
    assert len(cuts) >= 9
    assert all(abs(cut - round(cut / grid.length_s) * grid.length_s) <= grid.search_s for cut in cuts)


@pytest.mark.parametrize("pause_at_s", [-0.08, 0.0, 0.1])
def test_a_cut_is_in_the_pause(pause_at_s: float) -> None:
    samples = noise(1, 4 * RATE)
    middle = round((2 + pause_at_s) * RATE)
    samples[middle - RATE // 6 : middle + RATE // 6] = 0
    cuts = [cell.first for cell in GRID.cells(Clip(0, samples), 0, len(samples))]
    assert min(abs(cut - middle) for cut in cuts) <= HOP


def test_in_silence_a_cut_is_where_it_would_be() -> None:
    silence = Clip(0, np.zeros(4 * RATE, np.int16))
    assert [cell.first for cell in GRID.cells(silence, 0, silence.end)] == [0, RATE, 2 * RATE, 3 * RATE]


def test_nothing_has_no_cells() -> None:
    assert list(GRID.cells(Clip(5, np.zeros(0, np.int16)), 5, 5)) == []
