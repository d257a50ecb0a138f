"""Workers and the server are killed at random moments: the answers and the ledger must be those of a quiet run.

Moments are drawn as numbers of stored outputs plus a short delay, and the last segments are published only after the
last kill, so that every kill falls inside the run however fast the machine is. A seed draws the same moments each time.
"""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
import running
from clips import EXAMPLES, first_seconds

from engine.decide.answer import Answer
from engine.node.progress import Progress
from engine.node.worker_processes import Node, node
from engine.run.assignment import Assignment
from engine.spec.catalogue import installed
from engine.spec.choosing import Pace
from engine.spec.operator import Machine, Map, Reduce
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import load_workflow
from streams import subjects
from streams.media.segmenter import segments, stream_id
from streams.records import EndOfStream, Gap, Segment, decode_result, encode
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

pytestmark = pytest.mark.anyio

NUM_WORKER_KILLS, NUM_SERVER_KILLS = 6, 2
SEGMENT_S = 2.0
CLIP_S = 24.0
NUM_HELD_BACK = 2
ASKS = ("When does Martin's train leave?", "Where can I park my car?", "Who found the umbrella on the train?")


def plan_of() -> Plan:
    workflow = load_workflow(EXAMPLES / "video_qa.toml").for_asks(ASKS)
    return make_plan(workflow, installed(), Machine(num_cores=2), pace=Pace(SEGMENT_S))


async def contents(ledger: Ledger) -> dict[str, bytes]:
    """Everything the ledger holds, without what was measured."""
    found: dict[str, bytes] = {}
    for kind in ("media", "results", "dead"):
        for name, stored in (await ledger.get_many(await ledger.subjects(f"penstock.{kind}.>"))).items():
            data = stored.data
            if kind == "results":
                record = decode_result(data)
                data = encode(record if isinstance(record, Gap) else msgspec.structs.replace(record, measured=None))
            found[name] = data
    return found


async def run_job(store: Path, clip: Path, killer: "Killer | None") -> tuple[dict[str, bytes], list[Answer], int]:
    stored = 0

    def note(progress: Progress) -> None:
        nonlocal stored
        stored = sum(progress.stored.values())

    plan = plan_of()
    stream = stream_id(clip, SEGMENT_S)
    async with embedded(store) as url, connect(url) as link:
        ledger = await open_ledger(link)
        assignment = Assignment(url=url, num_cores=1, ack_wait_s=1.5)
        async with node(2, store / "workers.log") as workers, anyio.create_task_group() as tasks:
            workers.assign(assignment)
            source = partial(segments, str(clip), stream=stream, target_s=SEGMENT_S)
            if killer is not None:
                tasks.start_soon(killer, workers, lambda: stored)
            with anyio.fail_after(240):
                read = source if killer is None else lambda: killer.hold_back(source())
                answers = await running.answered(ledger, installed(), plan, stream, read, on_progress=note)
            tasks.cancel_scope.cancel()
        assert_complete(plan, stream, found := await contents(ledger))
        return found, answers, workers.num_restarts


def assert_complete(plan: Plan, stream: str, found: dict[str, bytes]) -> None:
    """Every stage has exactly one message for each segment 0 .. n (a subject holds one: the ledger is write-once)."""
    num_segments = sum(name.startswith(f"penstock.media.{stream}.") for name in found) - 1
    assert num_segments > 10
    expected = {subjects.media(stream, index) for index in range(num_segments)} | {subjects.media_end(stream)}
    for stage in plan.stages:
        whole = subjects.Key(0, num_segments - 1)
        keys = [whole] if isinstance(stage.scope, Reduce) else [subjects.Key.of(i) for i in range(num_segments)]
        expected |= {subjects.result(stage.id, stream, key) for key in keys}
    assert set(found) == expected


class Killer:
    """Kills a random worker each time enough is stored, and now and then the server."""

    def __init__(self, store: Path, num_segments: int, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)
        self._num_free = num_segments - NUM_HELD_BACK
        scopes = [stage.scope for stage in plan_of().stages]  # what waits for more of the stream comes later
        num_outputs = sum(self._num_free - scope.after for scope in scopes if isinstance(scope, Map))
        self._moments = sorted(self._random.randrange(num_outputs) for _ in range(NUM_WORKER_KILLS))
        self._over = threading.Event()
        self._with_server = set(self._random.sample(range(NUM_WORKER_KILLS), NUM_SERVER_KILLS))
        self._dead_workers, self._dead_servers = set[int](), set[int]()

    @property
    def num_killed(self) -> tuple[int, int]:
        return len(self._dead_workers), len(self._dead_servers)

    async def __call__(self, workers: Node, num_stored: Callable[[], int]) -> None:
        server = self._store / "server.json"
        for number, moment in enumerate(self._moments):
            while num_stored() < moment:  # noqa: ASYNC110 - other processes bring it about
                await anyio.sleep(0.01)
            await anyio.sleep(self._random.uniform(0, 0.4))
            await kill(lambda: self._random.choice(sorted(workers.pids.values())), self._dead_workers, os.killpg)
            if number in self._with_server:
                await kill(lambda: int(json.loads(server.read_text())["pid"]), self._dead_servers)
        self._over.set()

    def hold_back(self, source: Iterator[Segment | EndOfStream]) -> Iterator[Segment | EndOfStream]:
        """The source, its last segments only after the last kill."""
        for number, record in enumerate(source):
            if number == self._num_free and not self._over.wait(timeout=200):
                pytest.fail("the kills were not over after 200 s")
            yield record


async def kill(pid_of: Callable[[], int], dead: set[int], send: Callable[[int, int], None] = os.kill) -> None:
    """Kill whom `pid_of` names. One that is dead already is waited for until it is back."""
    with anyio.fail_after(60):
        while True:
            with suppress(ProcessLookupError, FileNotFoundError, IndexError):
                if (pid := pid_of()) not in dead:
                    send(pid, signal.SIGKILL)
                    return dead.add(pid)
            await anyio.sleep(0.01)


def essence(answers: list[Answer]) -> list[dict[str, object]]:
    kept = ("question", "answer", "confidence", "evidence", "stages", "gaps")
    return sorted(({name: getattr(a, name) for name in kept} for a in answers), key=lambda a: str(a["question"]))


async def test_killed_workers_and_servers_change_nothing(tmp_path: Path) -> None:
    short_clip = first_seconds(tmp_path / "short.mp4", CLIP_S)
    quiet, quiet_answers, _ = await run_job(tmp_path / "quiet", short_clip, None)
    num_segments = sum(name.startswith("penstock.media.") for name in quiet) - 1
    killer = Killer(tmp_path / "wild", num_segments, seed=1)
    wild, wild_answers, num_restarts = await run_job(tmp_path / "wild", short_clip, killer)
    assert killer.num_killed == (NUM_WORKER_KILLS, NUM_SERVER_KILLS)
    assert num_restarts >= NUM_WORKER_KILLS - 2  # the last may still be on their way back
    assert wild == quiet
    assert essence(wild_answers) == essence(quiet_answers)
