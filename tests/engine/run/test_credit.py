"""Whoever waits for credit is let go on when there is any, and not before."""

import anyio
import anyio.lowlevel
import pytest
from conftest import Eventually

from engine.decide.signals import PoolSignals
from engine.run.credit import CreditDesk

pytestmark = pytest.mark.anyio


class FakePool:
    """A pool of one lane that says what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.max_batch = 1
        self.num_waiting = 0
        self.num_asked = 0

    def signals(self, *, with_history: bool = True) -> PoolSignals:
        self.num_asked += 1
        return PoolSignals(
            pool=self.name,
            runs_in="thread",
            device="cpu",
            max_batch=1,
            num_waiting=self.num_waiting,
            num_in_service=0,
            num_in_flight=0,
            max_in_flight=1,
            num_instances=1,
        )


async def test_those_that_wait_for_a_pool_are_let_go_on_when_it_has_room(eventually: Eventually) -> None:
    full, free = FakePool("full"), FakePool("free")
    full.num_waiting = 5
    lent: dict[str, int] = {}
    held_back = False
    desk = CreditDesk(lambda: held_back)

    async def ask(group: str, pool: FakePool) -> None:
        lent[group] = await desk.of(group, lambda: 0, [pool])  # type: ignore[list-item]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.run)
        for number in range(100):
            tasks.start_soon(ask, f"g{number}", full)
        tasks.start_soon(ask, "other", free)
        await eventually(lambda: "other" in lent)
        asked = full.num_asked
        desk.note_change()
        await eventually(lambda: full.num_asked > asked)
        assert full.num_asked == asked + 1, "one look is enough for all that wait for the same"
        assert set(lent) == {"other"}
        full.num_waiting = 0
        held_back = True
        desk.note_change()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert set(lent) == {"other"}
        held_back = False
        desk.note_change()
        await eventually(lambda: len(lent) == 101)
        assert set(lent.values()) <= {1, 2}
        tasks.cancel_scope.cancel()


async def test_a_group_that_holds_enough_is_let_go_on_when_it_has_finished_something(eventually: Eventually) -> None:
    pool = FakePool("p")
    num_taken = 2
    lent: list[int] = []
    desk = CreditDesk(lambda: False)

    async def ask() -> None:
        lent.append(await desk.of("g", lambda: num_taken, [pool]))  # type: ignore[list-item]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(desk.run)
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        desk.note_finished("other")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert not lent
        num_taken = 1
        desk.note_finished("g")
        await eventually(lambda: lent == [1, 1])
        tasks.cancel_scope.cancel()
