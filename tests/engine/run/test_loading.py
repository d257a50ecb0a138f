"""When a worker is ready: once what there was to do when it began is loaded, whatever has come since."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from engine.run.loading import Loading

pytestmark = pytest.mark.anyio


class Slow:
    """A pool, as far as it is loaded ahead of its work."""

    def __init__(self, *, works: bool = True) -> None:
        self.loaded = anyio.Event()
        self._works = works

    async def warm_up(self) -> bool:
        await self.loaded.wait()
        return self._works


async def loading_of(first: list[Any], later: list[Any], then: Callable[[Loading], Any]) -> list[str]:
    """What was told, by `then`, of what was there in the beginning and what came later."""
    told: list[str] = []
    loading = Loading(lambda: told.append("loaded"), lambda: told.append("ready"))
    async with anyio.create_task_group() as tasks:
        for pool in first:
            tasks.start_soon(loading.warm_up, pool, loading.begin())
        loading.begun()
        for pool in later:
            tasks.start_soon(loading.warm_up, pool, loading.begin())
        await anyio.wait_all_tasks_blocked()
        await then(loading)
        tasks.cancel_scope.cancel()
    return told


async def test_what_comes_later_is_waited_for_by_nobody() -> None:
    first, later = Slow(), Slow()

    async def then(loading: Loading) -> None:
        assert not loading.is_ready
        first.loaded.set()
        await anyio.wait_all_tasks_blocked()
        assert loading.is_ready

    assert (await loading_of([first], [later], then))[:1] == ["ready"]


async def test_one_that_cannot_be_loaded_keeps_nobody_from_hearing_of_the_others() -> None:
    good, bad = Slow(), Slow(works=False)

    async def then(loading: Loading) -> None:
        good.loaded.set()
        await anyio.wait_all_tasks_blocked()
        bad.loaded.set()
        await anyio.wait_all_tasks_blocked()
        assert loading.is_ready

    assert await loading_of([good, bad], [], then) == ["loaded", "ready"]


async def test_until_it_is_known_what_there_is_to_do_it_is_not_ready() -> None:
    loading = Loading(lambda: None, lambda: None)
    loading.end(is_first=loading.begin())
    assert not loading.is_ready
    loading.begun()
    assert loading.is_ready
