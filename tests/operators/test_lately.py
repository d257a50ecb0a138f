"""What was computed lately is computed once, whoever asks, and what failed is tried again."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from operators.lately import Lately


def test_the_last_ones_are_kept() -> None:
    lately, asked = Lately[int](2), list[int]()

    def get(key: int) -> int:
        def compute() -> int:
            asked.append(key)
            return 10 * key

        return lately.get(key, compute)

    assert [get(key) for key in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert asked == [1, 2, 3, 2]


def test_who_asks_meanwhile_waits_for_it() -> None:
    lately, asked = Lately[str](4), list[str]()
    began, goes_on = threading.Event(), threading.Event()

    def compute() -> str:
        asked.append("x")
        began.set()
        assert goes_on.wait(30)
        return "heard"

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(lately.get, "x", compute)
        assert began.wait(30)
        others = [threads.submit(lately.get, "x", compute) for _ in range(2)]
        assert lately.get("y", lambda: "other") == "other"  # nobody else waits
        goes_on.set()
        assert [each.result(30) for each in (first, *others)] == ["heard"] * 3
    assert asked == ["x"]


def test_of_what_fails_nothing_is_kept() -> None:
    lately = Lately[int](4)

    def fail() -> int:
        raise OSError("out of memory")

    for _ in range(2):
        with pytest.raises(OSError, match="out of memory"):
            lately.get("x", fail)
    assert lately.get("x", lambda: 7) == 7
