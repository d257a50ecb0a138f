"""Cores: no more turns at once than there are, the most urgent first, and none is lost."""

from dataclasses import dataclass, field
from random import Random

import anyio
import anyio.lowlevel
import pytest
from conftest import Eventually

from engine.run.cores import Cores

pytestmark = pytest.mark.anyio


@dataclass
class Claim:
    cores: Cores
    urgent_ns: int
    has_use: bool = True
    seen: list[int] = field(default_factory=list)
    takes_ns: int = 0
    is_full: bool = True

    def granted(self) -> bool:
        self.seen.append(self.urgent_ns)
        return self.has_use


async def test_a_core_goes_to_the_most_urgent_of_those_that_wait() -> None:
    cores, seen = Cores(1), list[int]()
    first = Claim(cores, 9, seen=seen)
    cores.want(first)
    for urgent_ns in (5, 3, 7):
        cores.want(Claim(cores, urgent_ns, seen=seen))
    assert (seen, cores.num_wanting) == ([9], 3)
    for _ in range(3):
        cores.give()
    assert seen == [9, 3, 5, 7]
    cores.give()
    cores.want(first)
    assert seen[-1] == 9


async def test_one_that_has_no_use_for_it_passes_it_on_and_one_that_wants_it_twice_has_it_once() -> None:
    cores, seen = Cores(1), list[int]()
    taken = Claim(cores, 1, seen=seen)
    cores.want(taken)
    idle, other = Claim(cores, 2, has_use=False, seen=seen), Claim(cores, 3, seen=seen)
    for claim in (other, idle, idle):
        cores.want(claim)
    cores.give()
    assert seen == [1, 2, 3]
    assert cores.num_wanting == 0


async def test_who_is_canceled_waits_no_more_and_a_core_that_was_granted_comes_back(eventually: Eventually) -> None:
    cores = Cores(1)
    order: list[str] = []

    async def turn(name: str, urgent_ns: int) -> None:
        async with cores.turn(urgent_ns):
            order.append(name)

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def canceled() -> None:
            with scope:
                await turn("canceled", 1)

        async with cores.turn(0):
            tasks.start_soon(canceled)
            tasks.start_soon(turn, "other", 2)
            await eventually(lambda: cores.num_wanting == 2)
        scope.cancel()  # it has just been granted the core, and may not know yet
    assert order[-1] == "other"
    with anyio.fail_after(5):
        await turn("last", 5)
    assert cores.num_wanting == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_more_run_than_there_are_cores_and_none_is_lost(seed: int) -> None:
    chance = Random(seed)
    cores, running, most = Cores(3), 0, 0

    async def work(urgent_ns: int) -> None:
        nonlocal running, most
        with anyio.CancelScope() as scope:
            if chance.random() < 0.3:
                scope.deadline = anyio.current_time()
            async with cores.turn(urgent_ns):
                running += 1
                most = max(most, running)
                try:
                    for _ in range(chance.randrange(1, 9)):
                        await anyio.lowlevel.checkpoint()
                finally:
                    running -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(work, chance.randrange(100))
            await anyio.lowlevel.checkpoint()
    assert most == 3
    with anyio.fail_after(5):
        async with cores.turn(0), cores.turn(0), cores.turn(0):
            assert cores.num_wanting == 0


async def test_one_that_raises_keeps_no_core_from_the_others() -> None:
    class Broken(Claim):
        def granted(self) -> bool:
            raise ValueError("of its own")

    cores, seen = Cores(1), list[int]()
    with pytest.raises(ValueError, match="of its own"):
        cores.want(Broken(cores, 1))
    cores.want(Claim(cores, 2, seen=seen))
    assert seen == [2]
