"""Workers that are started ahead of time: taken once, heard like any other, passed over when they have died."""

from pathlib import Path

import pytest
from conftest import Eventually

from engine.node.worker_processes import node
from engine.run import spawn
from engine.run.worker import Assignment

pytestmark = pytest.mark.anyio


async def test_the_one_started_ahead_is_taken_and_what_it_says_is_kept(tmp_path: Path, eventually: Eventually) -> None:
    log = tmp_path / "workers.log"
    spawn.ahead()
    (first,) = [process.pid for process in spawn._ahead]
    async with node(1, log) as workers:
        await eventually(lambda: workers.pids == {0: first})
        assert spawn.started_ahead() is None
        workers.assign(Assignment(url="nats://127.0.0.1:1"))  # where nobody listens
        await eventually(lambda: workers.num_restarts > 0)
    assert b"worker_failed" in log.read_bytes()
    assert b"no NATS server answers at nats://127.0.0.1:1" in log.read_bytes()


def test_one_that_has_died_is_passed_over() -> None:
    spawn.ahead()
    (process,) = spawn._ahead
    process.kill()
    process.wait()
    assert spawn.started_ahead() is None
    assert process.stdin is not None
    process.stdin.close()
