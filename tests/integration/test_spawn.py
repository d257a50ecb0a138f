"""Workers that are started ahead of time: taken once, heard like any other, passed over when they have died."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Eventually

from engine.node import worker_processes
from engine.node.worker_processes import node
from engine.run import spawn
from engine.run.assignment import Assignment
from streams.wire.link import Link, connect

pytestmark = pytest.mark.anyio


async def signals_on(link: Link) -> list[str]:
    """Subjects of what workers say of themselves, as they come."""
    heard: list[str] = []

    async def hear(message: Any) -> None:
        heard.append(message.subject)

    await link.subscribe("penstock.signals.>", hear)
    await link.client.flush()
    return heard


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


async def test_one_whose_event_loop_stops_is_ended_and_another_started(
    nats_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "SILENT_S", 3.0)  # some beats
    log = tmp_path / "workers.log"
    async with node(1, log) as workers, connect(nats_url) as link:
        heard = await signals_on(link)
        workers.assign(Assignment(url=nats_url))
        await eventually(lambda: heard != [])
        (frozen,) = workers.pids.values()
        os.kill(frozen, signal.SIGSTOP)
        await eventually(lambda: list(workers.pids.values()) not in ([], [frozen]))
        heard.clear()
        await eventually(lambda: heard != [])
    with pytest.raises(ProcessLookupError):
        os.kill(frozen, 0)


async def test_a_folder_may_hold_anything_by_our_names(
    nats_url: str, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("engine", "streams", "operators"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a game')\n")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "workers.log"
    async with node(1, log) as workers, connect(nats_url) as link:
        heard = await signals_on(link)
        workers.assign(Assignment(url=nats_url))
        await eventually(lambda: heard != [])
        assert workers.num_restarts == 0
    assert b"a game" not in log.read_bytes()


def test_one_that_has_died_is_passed_over() -> None:
    spawn.ahead()
    (process,) = spawn._ahead
    process.kill()
    process.wait()
    assert spawn.started_ahead() is None
    assert process.stdin is not None
    assert process.stdin.closed
