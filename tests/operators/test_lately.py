"""What was computed lately is computed once, whoever asks, and what failed is tried again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import anyio
import pytest

from operators.lately import Lately, LatelyAwaited


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


@pytest.mark.anyio
async def test_tasks_wait_for_who_computes_and_fail_with_it() -> None:
    lately, asked = LatelyAwaited[int](2), list[int]()
    began, goes_on = anyio.Event(), anyio.Event()
    found, failed = list[int](), list[str]()

    async def compute(key: int) -> int:
        asked.append(key)
        began.set()
        await goes_on.wait()
        if key < 0:
            raise ValueError(f"{key}")
        return 10 * key

    async def get(key: int) -> None:
        try:
            found.append(await lately.get(key, partial(compute, key)))
        except ValueError as error:
            failed.append(str(error))

    async with anyio.create_task_group() as tasks:
        for key in (1, 1, -1, -1, 1):
            tasks.start_soon(get, key)
        await began.wait()
        goes_on.set()
    assert (found, failed, sorted(asked)) == ([10, 10, 10], ["-1", "-1"], [-1, 1])
    await get(-1)
    assert asked.count(-1) == 2, "of what failed nothing is kept"
    for key in (2, 3, 1):
        await get(key)
    assert asked.count(1) == 2, "the last two are kept"


@pytest.mark.anyio
async def test_where_who_computes_is_canceled_the_next_one_does() -> None:
    lately, asked = LatelyAwaited[str](2), list[str]()
    first = anyio.CancelScope()
    waiting = anyio.Event()
    found = list[str]()

    async def compute(name: str) -> str:
        asked.append(name)
        if name == "first":
            waiting.set()
            await anyio.sleep_forever()
        return name

    async def get(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await lately.get("key", partial(compute, name)))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get, "first", first)
            await waiting.wait()
            for name in ("second", "third"):
                tasks.start_soon(get, name, anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            first.cancel()
    assert asked == ["first", "second"]
    assert found == ["second", "second"]
