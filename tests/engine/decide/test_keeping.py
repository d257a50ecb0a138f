"""What a frame store keeps, lets go and waits for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decide.keeping import evicted, has_to_wait, is_over
from operators.media.pictures import FrameSpec
from operators.media.sound import AudioSpec


@pytest.mark.parametrize(
    ("sizes", "num_bytes", "max_bytes", "gone"),
    [
        ([3, 3], 6, 6, []),  # it fits
        ([3, 3], 7, 6, [0]),  # the least recently used goes first
        ([1, 3, 5], 12, 8, [0, 1]),
        ([1, 1], 20, 5, [0, 1]),  # the rest is pinned: no more can go
        ([], 20, 5, []),
    ],
)
def test_the_least_recently_used_goes_until_the_rest_fits(
    sizes: list[int], num_bytes: int, max_bytes: int, gone: list[int]
) -> None:
    assert evicted(enumerate(sizes), num_bytes, max_bytes) == gone


@given(st.lists(st.integers(1, 100)), st.integers(0, 300), st.integers(0, 300))
def test_no_more_goes_than_has_to(sizes: list[int], pinned_bytes: int, max_bytes: int) -> None:
    num_bytes = pinned_bytes + sum(sizes)
    gone = evicted(enumerate(sizes), num_bytes, max_bytes)
    left_bytes = num_bytes - sum(sizes[place] for place in gone)
    assert gone == list(range(len(gone)))
    assert left_bytes <= max_bytes or len(gone) == len(sizes)
    assert not gone or left_bytes + sizes[gone[-1]] > max_bytes


FRAMES, SOUND = FrameSpec(), AudioSpec()


@pytest.mark.parametrize(
    ("done_by", "expected"),
    [((), False), (("reads",), False), (("reads", "finds"), True), (("reads", "finds", "hears"), True)],
)
def test_what_all_that_ask_for_it_are_done_with_is_over(done_by: tuple[str, ...], expected: bool) -> None:
    demands = {"reads": (FRAMES,), "finds": (FRAMES, SOUND), "hears": (SOUND,)}
    assert is_over(type(FRAMES), demands, done_by) is expected


def test_what_nobody_asks_for_is_over() -> None:
    assert is_over(type(FRAMES), {"hears": (SOUND,)}, ())


@pytest.mark.parametrize(
    ("pinned_bytes", "is_there", "expected"), [(9, False, False), (10, False, True), (10, True, False)]
)
def test_a_decode_waits_while_pinned_frames_fill_the_budget(pinned_bytes: int, is_there: bool, expected: bool) -> None:
    assert has_to_wait(pinned_bytes, 10, is_there=is_there) is expected
