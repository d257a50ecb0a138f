"""The frame store: decoded once for all, within a budget, gone when nobody will look again."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest
import toys
from conftest import Eventually

from engine.run.cores import Cores
from engine.run.frames import FrameStore
from streams.errors import Permanent
from streams.records import Segment

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Picture:
    """What one demand comes to: as many bytes as it says."""

    nbytes: int
    path: str = "by hand"


@dataclass(frozen=True)
class Pictures:
    """A demand for pictures of a size."""

    size: int
    runs: ClassVar[list[tuple[int, list[int]]]] = []

    @classmethod
    def decode(cls, segment: Segment, wanted: Sequence["Pictures"]) -> Mapping["Pictures", Picture]:
        cls.runs.append((segment.index, sorted(each.size for each in wanted)))
        if segment.packets[0].data == b"13":
            raise Permanent("not one picture")
        return {each: Picture(each.size) for each in wanted}


@dataclass(frozen=True)
class Sound(Pictures):
    """Another kind: a decode of its own."""


@pytest.fixture(autouse=True)
def no_runs() -> None:
    Pictures.runs.clear()


def segment(index: int, value: int = 0) -> Segment:
    return toys.toy_segment("s", index, value)


MakeStore = Callable[[int], FrameStore]


@pytest.fixture
async def store_of() -> AsyncIterator[MakeStore]:
    yield lambda max_bytes: FrameStore(Cores(2), max_bytes)


async def test_one_decode_serves_all_who_will_ask(store_of: MakeStore) -> None:
    store = store_of(1000)
    store.serve("s", "a", [Pictures(10)])
    store.serve("s", "b", [Pictures(20), Sound(5)])
    first = await store.hold("s", [segment(0)], [Pictures(10)])
    second = await store.hold("s", [segment(0)], [Pictures(20)])
    assert Pictures.runs == [(0, [10, 20])]
    assert second.media[0].products == {Pictures(20): Picture(20)}
    assert (store.num_bytes, store.num_decoded) == (30, 1)
    assert (first.decode_path, second.decode_path, dict(store.decoded_by)) == ("by hand", "", {"by hand": 1})
    await store.hold("s", [segment(0)], [Sound(5)])
    assert Pictures.runs == [(0, [10, 20]), (0, [5])]
    first.let_go()
    second.let_go()
    assert store.num_bytes == 35  # others may still come


async def test_it_is_gone_when_every_group_that_wanted_it_is_done(store_of: MakeStore) -> None:
    store = store_of(1000)
    store.serve("s", "a", [Pictures(10)])
    store.serve("s", "b", [Pictures(20)])
    hold = await store.hold("s", [segment(0)], [Pictures(10)])
    store.release("s", "a", 0)
    hold.let_go()
    assert store.num_bytes == 30
    store.release("s", "b", 0)
    assert store.num_bytes == 0


async def test_the_least_recently_used_goes_first_and_what_is_looked_at_stays(store_of: MakeStore) -> None:
    store = store_of(250)
    store.serve("s", "a", [Pictures(100)])
    pinned = await store.hold("s", [segment(0)], [Pictures(100)])
    for index in (1, 2, 3):
        (await store.hold("s", [segment(index)], [Pictures(100)])).let_go()
    assert store.num_bytes == 200
    (await store.hold("s", [segment(0)], [Pictures(100)])).let_go()
    assert [index for index, _ in Pictures.runs] == [0, 1, 2, 3]  # 0 was never let go of
    pinned.let_go()


async def test_a_decode_waits_while_what_is_looked_at_fills_the_budget(
    store_of: MakeStore, eventually: Eventually
) -> None:
    store = store_of(100)
    store.serve("s", "a", [Pictures(100)])
    first = await store.hold("s", [segment(0)], [Pictures(100)])
    held: list[Any] = []

    async def second() -> None:
        held.append(await store.hold("s", [segment(1), segment(2)], [Pictures(100)]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second)
        await anyio.lowlevel.checkpoint()
        assert Pictures.runs == [(0, [100])]
        first.let_go()
        await eventually(lambda: held)  # and it goes on with what it needs, over the budget if it must
    assert [index for index, _ in Pictures.runs] == [0, 1, 2]


async def test_what_cannot_be_decoded_is_said_and_takes_no_room(store_of: MakeStore) -> None:
    store = store_of(100)
    store.serve("s", "a", [Pictures(100)])
    for _ in range(2):
        with pytest.raises(Permanent, match="not one picture"):
            await store.hold("s", [segment(0), segment(1, 13)], [Pictures(100)])
    store.leave("s", "a")
    assert store.num_bytes == 0


async def test_all_that_wait_for_room_are_let_go_on(store_of: MakeStore, eventually: Eventually) -> None:
    store = store_of(100)
    store.serve("s", "a", [Pictures(100)])
    first = await store.hold("s", [segment(0)], [Pictures(100)])
    held: list[int] = []

    async def wait_for(index: int) -> None:
        hold = await store.hold("s", [segment(index)], [Pictures(100)])
        held.append(index)
        hold.let_go()

    async with anyio.create_task_group() as tasks:
        for index in (1, 2, 3, 4):
            tasks.start_soon(wait_for, index)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert not held
        again = await store.hold("s", [segment(0)], [Pictures(100)])  # what is there needs no room
        again.let_go()
        first.let_go()
        await eventually(lambda: sorted(held) == [1, 2, 3, 4])
    assert store.pinned_bytes == 0


async def test_two_that_ask_for_more_of_what_they_share_do_not_wait_for_each_other(
    store_of: MakeStore, eventually: Eventually
) -> None:
    """Each would hold what is there, which fills the budget, while it waits for room for what is not."""
    store = store_of(150)
    store.serve("s", "a", [Pictures(100)])
    for index in (0, 1):
        (await store.hold("s", [segment(index)], [Pictures(100)])).let_go()
    done: list[int] = []

    async def ask(index: int) -> None:
        hold = await store.hold("s", [segment(index)], [Pictures(100), Pictures(50)])
        done.append(index)
        hold.let_go()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, 0)
        tasks.start_soon(ask, 1)
        await eventually(lambda: sorted(done) == [0, 1])
