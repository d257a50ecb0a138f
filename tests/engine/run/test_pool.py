"""Pools: batches across callers, and what each way of failing comes to, in the loop, in threads and in processes."""

import math
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from typing import Any, ClassVar, Literal

import anyio
import anyio.lowlevel
import msgspec
import pytest
import toys
from conftest import Eventually
from doubling import Doubled, InLoop, InProcess, InThread, StuckProcess

from engine.run import pool as pools
from engine.run.cores import Cores
from engine.run.done import Canceled, Done, Late, all_done
from engine.run.instances import MAX_STUCK, Instances
from engine.run.pool import Pool
from engine.spec.operator import Device, Emit, Entry, Inputs, Operator, Settings
from streams.errors import Permanent, Transient

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("operator", [InLoop, InThread, InProcess])
MakePool = Callable[..., Pool]


@pytest.fixture(autouse=True)
def forgotten() -> None:
    for operator in (InLoop, InThread, InProcess):
        operator.batches, operator.num_loaded = [], 0


@pytest.fixture
async def pool_of() -> AsyncIterator[MakePool]:
    """Makes pools; their lanes end with the test."""
    async with anyio.create_task_group() as tasks:

        def make(operator: type[Operator], num_cores: int = 2) -> Pool:
            return Pool(operator, Settings(), Device(), Cores(num_cores), tasks)

        yield make
        tasks.cancel_scope.cancel()


def item(number: int) -> Inputs:
    return Inputs("s", 0, 0, Settings(), {"numbers": ((Entry(0, toys.Number(value=number)),),)})


async def outcomes(pool: Pool, numbers: Sequence[int]) -> list[Any]:
    """For each number its double, or the type and message of its error."""
    with anyio.fail_after(30):
        done = await all_done(pool, [item(number) for number in numbers])
    return [each.output.value if each.error is None else (type(each.error), str(each.error)) for each in done]  # type: ignore[union-attr]


@MODES
async def test_items_come_back_in_order(operator: type[Doubled], pool_of: MakePool) -> None:
    pool = pool_of(operator)
    assert await outcomes(pool, range(11)) == [2 * number for number in range(11)]
    assert await outcomes(pool, []) == []
    assert await outcomes(pool, [5]) == [10]


@MODES
async def test_one_bad_item_does_not_fail_its_neighbours(operator: type[Doubled], pool_of: MakePool) -> None:
    name = operator.name
    assert await outcomes(pool_of(operator), [1, 13, 2, 17, 3, 19, 4, 23, 29, 5]) == [
        2,
        (Permanent, "unlucky number"),
        4,
        (Transient, "not in the mood"),
        6,
        (Permanent, f"{name} raised ValueError: never thought of 19"),
        8,
        (Transient, f"{name}: MemoryError: 23 is too large"),
        (Transient, f"{name}: FileNotFoundError: [Errno 2] No such file: 'model.bin'"),
        10,
    ]


@MODES
async def test_callers_at_once_each_get_their_own(operator: type[Doubled], pool_of: MakePool) -> None:
    pool = pool_of(operator)
    found: dict[int, list[Any]] = {}

    async def call(caller: int) -> None:
        found[caller] = await outcomes(pool, range(10 * caller + 100, 10 * caller + 100 + caller))

    async with anyio.create_task_group() as tasks:
        for caller in range(8):
            tasks.start_soon(call, caller)
    assert found == {caller: [2 * (10 * caller + 100 + each) for each in range(caller)] for caller in range(8)}


@pytest.mark.parametrize("operator", [InLoop, InThread])
async def test_batches_are_filled_across_callers(operator: type[Doubled], pool_of: MakePool) -> None:
    pool = pool_of(operator, num_cores=1)
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(outcomes, pool, [number])
    assert operator.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert operator.num_loaded == 1


async def test_what_it_cost_is_shared_by_the_batch(pool_of: MakePool) -> None:
    done = await all_done(pool_of(InThread), [item(1), item(2), item(3)])
    assert {each.batch_size for each in done} == {3}
    for each in done:
        assert each.compute_s == pytest.approx((each.ended_ns - each.started_ns) / 3e9)
        assert msgspec.msgpack.decode(each.encoded, type=toys.Number) == each.output
    assert Done(None, b"", None, 10**9, 4 * 10**9, 2).compute_s == 1.5


class Wrong(Doubled):
    runs_in = "thread"
    max_batch = 2
    gives: ClassVar[Callable[[list[msgspec.Struct]], Any]]

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        return type(self).gives(list(super().process(batch)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda outputs: outputs[:-1], "doubled returned 0 outputs for 1 inputs"),
        (lambda outputs: [*outputs, outputs[0]], "doubled returned 2 outputs for 1 inputs"),
        (lambda outputs: [toys.Added()] * len(outputs), "doubled returned Added, not Number"),
        (lambda outputs: [None] * len(outputs), "doubled returned NoneType, not Number"),
        (lambda outputs: [toys.Number(value=object())] * len(outputs), "doubled returned what cannot be encoded"),  # type: ignore[arg-type]
        (lambda outputs: [toys.Number(value=2**64)] * len(outputs), "doubled returned what cannot be encoded"),
        (lambda outputs: None, "doubled raised TypeError"),
        (lambda outputs: iter(outputs), "doubled raised TypeError"),
    ],
)
async def test_wrong_outputs_fail_for_good(
    gives: Any, said: str, pool_of: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "gives", staticmethod(gives), raising=False)
    for kind, message in await outcomes(pool_of(Wrong), [1, 2]):
        assert kind is Permanent
        assert message.startswith(said)


class Unloadable(Doubled):
    runs_in = "thread"
    error: ClassVar[Exception] = Transient("the hub does not answer")

    def load(self, device: Device) -> None:
        raise self.error


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_what_cannot_be_loaded_fails_as_it_says(
    where: Literal["loop", "thread"], pool_of: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unloadable, "runs_in", where)
    assert await outcomes(pool_of(Unloadable), [1, 2]) == [(Transient, "the hub does not answer")] * 2


class Stuck(Doubled):
    """Works on 7 until it is let go; in a process, until that is killed."""

    timeout_s = 0.05
    let_go: ClassVar[threading.Event]

    def fail(self, number: int) -> None:
        if number == 7:
            self.let_go.wait(30)


class StuckThread(Stuck):
    runs_in = "thread"


class Patient(StuckThread):
    timeout_s = 30.0
    max_batch = 1


async def test_a_batch_that_hangs_costs_one_timeout(pool_of: MakePool) -> None:
    Stuck.let_go = threading.Event()
    pool = pool_of(StuckThread, num_cores=1)
    try:
        done = await all_done(pool, [item(number) for number in (1, 7, 2, 3)])
        assert {type(each.error) for each in done} == {Transient}
        assert len({(each.started_ns, each.ended_ns) for each in done}) == 1  # one call, not one and one for each
    finally:
        Stuck.let_go.set()


async def test_a_model_is_not_loaded_for_ever_beside_batches_that_do_not_come_back(
    pool_of: MakePool, eventually: Eventually
) -> None:
    Stuck.let_go, StuckThread.num_loaded = threading.Event(), 0
    pool = pool_of(StuckThread, num_cores=1)
    try:
        num_tried = 0
        while StuckThread.num_loaded < MAX_STUCK:  # on a busy machine the time may be over before it is loaded
            ((kind, said),) = await outcomes(pool, [7])
            assert kind is Transient
            assert "did not finish within" in said
            num_tried += 1
            assert num_tried <= 5 * MAX_STUCK
        ((kind, said),) = await outcomes(pool, [1])
        assert (kind, "4 batches have not come back" in said) == (Transient, True)
        assert StuckThread.num_loaded == MAX_STUCK
        assert pool.overdue_s > 0
    finally:
        Stuck.let_go.set()
    await eventually(lambda: pool.overdue_s == 0)


class SlowToLoad(InThread):
    """Loads until it is let go."""

    may_load: ClassVar[threading.Event]

    def load(self, device: Device) -> None:
        self.may_load.wait(30)
        super().load(device)


async def test_what_comes_while_the_model_is_being_loaded_waits_for_it(
    pool_of: MakePool, eventually: Eventually
) -> None:
    SlowToLoad.may_load, SlowToLoad.num_loaded = threading.Event(), 0
    pool = pool_of(SlowToLoad, num_cores=1)
    was_done: list[bool] = []

    async def warm_up() -> None:
        was_done.append(await pool.warm_up())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(warm_up)
        tasks.start_soon(warm_up)
        await eventually(lambda: was_done == [False])
        tasks.start_soon(outcomes, pool, [1, 2, 3])
        await eventually(lambda: pool.signals().num_in_service > 0)
        SlowToLoad.may_load.set()
    assert SlowToLoad.num_loaded == 1
    assert sorted(was_done) == [False, True]


class Learning(Doubled):
    """An engine that batches by itself."""

    name = "learning"
    runs_in = "async"
    max_in_flight = 3
    running: ClassVar[int] = 0
    most: ClassVar[int] = 0
    canceled: ClassVar[list[int]] = []
    let_go: ClassVar[anyio.Event]

    async def process_one(self, inputs: Inputs, emit: Emit) -> msgspec.Struct:
        number = inputs.here("numbers").value
        Learning.running += 1
        Learning.most = max(Learning.most, Learning.running)
        try:
            emit(f"thinking of {number}")
            if number >= 100:
                await Learning.let_go.wait()
            self.fail(number)
            await anyio.lowlevel.checkpoint()
            return toys.Number(value=2 * number)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                Learning.canceled.append(number)
            raise
        finally:
            Learning.running -= 1


@pytest.fixture
def learning() -> None:
    Learning.most, Learning.canceled, Learning.num_loaded = 0, [], 0
    Learning.let_go = anyio.Event()


async def test_an_engine_that_batches_by_itself_gets_so_many_items_at_once(
    learning: None, pool_of: MakePool, eventually: Eventually
) -> None:
    pool = pool_of(Learning)
    found: list[Done] = []
    said: list[str] = []
    for number in range(100, 105):
        pool.submit(item(number), found.append, emit=lambda text, *, anew=False: said.append(text))
    await eventually(lambda: Learning.running == 3)
    signals = pool.signals()
    assert (signals.num_waiting, signals.num_in_service, signals.max_in_flight) == (2, 3, 3)
    assert said == ["thinking of 100", "thinking of 101", "thinking of 102"]
    Learning.let_go.set()
    await eventually(lambda: len(found) == 5)
    assert sorted(done.output.value for done in found) == [200, 202, 204, 206, 208]  # type: ignore[union-attr]
    assert (Learning.most, Learning.num_loaded) == (3, 1)


async def test_what_nobody_wants_any_more_is_canceled_in_the_engine_too(
    learning: None, pool_of: MakePool, eventually: Eventually
) -> None:
    pool = pool_of(Learning)
    found: dict[int, Done] = {}
    tickets = [pool.submit(item(n), lambda done, n=n: found.__setitem__(n, done)) for n in (100, 101, 102, 103, 5)]  # type: ignore[misc]
    await eventually(lambda: Learning.running == 3)
    for ticket in tickets[1:4]:
        pool.cancel(ticket)
    await eventually(lambda: 5 in found)
    assert sorted(Learning.canceled) == [101, 102]
    assert 103 not in found  # it never began
    assert {n for n, done in found.items() if isinstance(done.error, Canceled)} == {101, 102}
    Learning.let_go.set()
    await eventually(lambda: 100 in found)


async def test_an_engine_that_batches_by_itself_fails_as_others_do(learning: None, pool_of: MakePool) -> None:
    assert await outcomes(pool_of(Learning), [1, 13, 17, 19]) == [
        2,
        (Permanent, "unlucky number"),
        (Transient, "not in the mood"),
        (Permanent, "learning raised ValueError: never thought of 19"),
    ]


async def test_on_a_gpu_it_is_loaded_as_often_as_it_says_however_many_cores_there_are(
    eventually: Eventually,
) -> None:
    Parallel.let_go, Parallel.most, Parallel.num_loaded = threading.Event(), 0, 0
    async with anyio.create_task_group() as lanes:
        pool = Pool(Parallel, Settings(), Device("cuda"), Cores(16), lanes)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcomes, pool, range(6))
            await eventually(lambda: len(Parallel.running) == 1)
            assert pool.signals().num_waiting == 5
            Parallel.let_go.set()
    assert (Parallel.most, Parallel.num_loaded) == (1, 1)


async def test_what_is_late_is_dropped_when_it_is_though_no_lane_is_free(
    pool_of: MakePool, eventually: Eventually
) -> None:
    Stuck.let_go = threading.Event()
    now_ns = 1000
    async with anyio.create_task_group() as lanes:
        pool = Pool(Patient, Settings(), Device(), Cores(1), lanes, now_ns=lambda: now_ns)
        found: list[Done] = []
        pool.submit(item(7), found.append)
        await eventually(lambda: pool.signals().num_in_service == 1)
        pool.submit(item(1), found.append, due_ns=2000)
        pool.submit(item(2), found.append)
        now_ns = 2001
        await eventually(lambda: len(found) == 1)
        assert isinstance(found[0].error, Late)
        Stuck.let_go.set()
        await eventually(lambda: len(found) == 3)
        assert pool.signals().num_late == 1


async def test_a_thread_that_takes_too_long_may_be_tried_again(pool_of: MakePool) -> None:
    Stuck.let_go = threading.Event()
    pool = pool_of(StuckThread, num_cores=4)
    try:
        assert await outcomes(pool, [7]) == [(Transient, "doubled did not finish within 0.05 s")]
        assert await outcomes(pool, [1]) == [2]
    finally:
        Stuck.let_go.set()


async def test_a_process_that_takes_too_long_is_killed(pool_of: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(StuckProcess, num_cores=1)
    assert await outcomes(pool, [1]) == [2]
    monkeypatch.setattr(StuckProcess, "timeout_s", 0.1)
    assert await outcomes(pool, [7]) == [(Transient, "doubled did not finish within 0.1 s")]
    monkeypatch.setattr(StuckProcess, "timeout_s", 30.0)
    assert await outcomes(pool, [2]) == [4]


async def test_a_process_is_ended_once_nobody_wants_anything_of_its_batch(
    pool_of: MakePool, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StuckProcess, "timeout_s", 600.0)
    monkeypatch.setattr(pools, "UNWANTED_S", 0.0)
    pool = pool_of(StuckProcess, num_cores=1)
    found: dict[int, Done] = {}
    tickets = [pool.submit(item(n), lambda done, n=n: found.__setitem__(n, done)) for n in (7, 1)]  # type: ignore[misc]
    await eventually(lambda: pool.signals().num_in_service == 2)
    tickets[0].cancel()
    assert tickets[0].lane is not None
    assert math.isinf(tickets[0].lane.scope.deadline)  # the other is wanted
    tickets[1].cancel()
    await eventually(lambda: len(found) == 2)
    assert all(isinstance(done.error, Canceled) for done in found.values())
    assert pool.signals().num_in_service == 0
    assert await outcomes(pool, [2]) == [4]


async def test_a_child_process_that_dies_may_be_tried_again(pool_of: MakePool) -> None:
    pool = pool_of(InProcess)
    first, dead, last = await outcomes(pool, [1, 31, 2])
    assert (first, last) == (2, 4)
    assert dead[0] is Transient
    assert "BrokenWorkerProcess" in dead[1]
    assert await outcomes(pool, [3]) == [6]


async def test_a_child_that_is_canceled_as_it_starts_is_the_next_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was left behind would be killed unseen, and another started."""
    instances = Instances(InProcess, Settings(), Device())
    scope = anyio.CancelScope()
    num_started = 0

    class Counted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **how: Any) -> None:
            nonlocal num_started
            num_started += 1
            scope.cancel()
            super().__init__(*arguments, **how)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    with scope:
        await instances.warm_up()
    assert scope.cancelled_caught
    assert num_started == 1
    outputs, _, _ = await instances.call([item(3)])
    assert outputs == [toys.Number(value=6)]
    assert num_started == 1


class Parallel(Doubled):
    """Notes how many of its batches run at once; each waits until as many as may have come, or nobody else comes."""

    runs_in = "thread"
    max_batch = 1
    running: ClassVar[set[int]] = set()
    most: ClassVar[int] = 0
    let_go: ClassVar[threading.Event]

    def fail(self, number: int) -> None:
        self.running.add(number)
        type(self).most = max(self.most, len(self.running))
        self.let_go.wait(30)
        self.running.discard(number)


async def test_pools_share_their_worker_s_cores(eventually: Eventually) -> None:
    Parallel.let_go, Parallel.most = threading.Event(), 0
    cores = Cores(2)
    async with anyio.create_task_group() as lanes:
        pools = [Pool(Parallel, Settings(), Device(), cores, lanes) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            for number, pool in enumerate(pools):
                tasks.start_soon(outcomes, pool, range(10 * number, 10 * number + 3))
            await eventually(lambda: len(Parallel.running) == 2 and cores.num_wanting == 1)
            Parallel.let_go.set()
    assert Parallel.most == 2


class Meeting(Doubled):
    """Works only while another of its kind does."""

    name = "meeting"
    runs_in = "thread"
    max_batch = 1
    both: ClassVar[threading.Barrier]
    num_begun: ClassVar[int] = 0

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        Meeting.num_begun += 1
        Meeting.both.wait(timeout=15)
        return super().process(batch)


async def test_what_comes_while_a_lane_is_at_work_gets_a_lane_of_its_own(
    pool_of: MakePool, eventually: Eventually
) -> None:
    Meeting.both, Meeting.num_begun = threading.Barrier(2), 0
    pool = pool_of(Meeting)
    found: list[Any] = []

    async def one(number: int) -> None:
        found.extend(await outcomes(pool, [number]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, 1)
        await eventually(lambda: Meeting.num_begun == 1)
        tasks.start_soon(one, 2)
    assert sorted(found) == [2, 4]


class Sharing(Parallel):
    """Odd numbers want the same, and so do even ones."""

    name = "sharing"
    max_batch = 4

    @classmethod
    def shared_work(cls, knobs: Settings, inputs: Inputs) -> frozenset[Hashable]:
        number = toys.number(inputs.here("numbers"))
        if number == 99:
            raise ValueError("of no kind")
        return frozenset({number % 2})


async def test_what_wants_the_same_work_is_in_one_batch_and_never_side_by_side(
    pool_of: MakePool, eventually: Eventually
) -> None:
    Parallel.let_go, Sharing.batches = threading.Event(), []
    pool = pool_of(Sharing, num_cores=4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outcomes, pool, [2, 4, 1, 6, 3, 8])
        await eventually(lambda: len(Sharing.batches) == 2)
        tasks.start_soon(outcomes, pool, [5, 10])
        await eventually(lambda: pool.signals().num_waiting == 2)
        Parallel.let_go.set()
    assert sorted(Sharing.batches) == [[1, 3], [2, 4, 6, 8], [5], [10]]


async def test_what_it_shares_is_a_hint_that_may_fail(pool_of: MakePool) -> None:
    Parallel.let_go = threading.Event()
    Parallel.let_go.set()
    assert await outcomes(pool_of(Sharing), [99]) == [198]


class Static(InThread):
    name = "static"

    @staticmethod
    def shared_work(knobs: Settings, inputs: Inputs) -> frozenset[Hashable]:  # type: ignore[override]
        return frozenset({0})


async def test_what_it_shares_may_be_said_by_a_static_method(pool_of: MakePool) -> None:
    assert await outcomes(pool_of(Static), [1, 2]) == [2, 4]


async def test_a_pool_learns_what_batches_take_and_makes_one_smaller_that_would_be_late(
    pool_of: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on with what is computed: 10 s, and 10 s for each item."""
    now_ns = [10**18]

    def timed(operator: Operator, batch: Sequence[Inputs]) -> tuple[Any, int, int]:
        began_ns = now_ns[0]
        now_ns[0] += (10 + 10 * len(batch)) * 10**9
        return operator.process(batch), began_ns, now_ns[0]

    monkeypatch.setattr("engine.run.instances._timed", timed)
    pool = pool_of(InThread, num_cores=1)
    monkeypatch.setattr(pool, "_now_ns", lambda: now_ns[0])
    for num in (1, 1, 2, 4, 1, 2, 4):  # the first warms it up
        await all_done(pool, [item(1)] * num)
    InThread.batches.clear()
    over, told = anyio.Event(), list[Done]()

    def note(done: Done) -> None:
        told.append(done)
        if len(told) == 4:
            over.set()

    for number, done_s in enumerate((35, 10**4, 10**4, 10**4)):
        due_ns = now_ns[0] + done_s * 10**9
        pool.submit(item(number), note, due_ns=due_ns, done_ns=due_ns)
    with anyio.fail_after(30):
        await over.wait()
    assert InThread.batches == [[0, 1], [2, 3]]  # two are over in 30 s, four in 50
    assert [done.error for done in told] == [None] * 4
    assert told[0].why == "a lane is free and more would be late"


async def test_a_batch_is_formed_when_there_is_a_core_for_it(pool_of: MakePool, eventually: Eventually) -> None:
    """What came while another pool had the only core makes it larger."""
    cores = Cores(1)
    over, told = anyio.Event(), list[Done]()

    def note(done: Done) -> None:
        told.append(done)
        if len(told) == 4:
            over.set()

    async with anyio.create_task_group() as lanes:
        pool = Pool(InThread, Settings(), Device(), cores, lanes)
        async with cores.turn(0):
            pool.submit(item(1), note)
            await eventually(lambda: cores.num_wanting == 1)
            for number in (2, 3, 4):
                pool.submit(item(number), note)
            assert pool.signals().num_in_flight == 0
        with anyio.fail_after(30):
            await over.wait()
    assert InThread.batches == [[1, 2, 3, 4]]
    assert {done.batch_size for done in told} == {4}
