"""What every test may ask for: an event loop, a NATS server of its own, and waiting for a condition."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import disks
import pytest
import structlog
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings

from streams.wire.ledger import Ledger
from streams.wire.link import connect
from streams.wire.server import embedded

# What a test finds does not depend on what this machine keeps: models are those of the installed packages.
os.environ["HF_HUB_OFFLINE"] = "1"
for place in "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME":
    os.environ[place] = tempfile.mkdtemp(prefix="penstock-tests-")
    atexit.register(shutil.rmtree, os.environ[place], ignore_errors=True)
for place in "PENSTOCK_MODELS", "PENSTOCK_WHISPER_DIR", "PENSTOCK_ENDPOINTS":
    os.environ.pop(place, None)

# No test depends on speed, nor on how many others run beside it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Eventually = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(autouse=True)
def logging_as_it_comes() -> None:
    """What one test set up for its log is nothing to the next."""
    structlog.reset_defaults()


@pytest.fixture(autouse=True, scope="module")
def left_behind() -> Iterator[None]:
    """What a module leaves behind, such as a process, warns in it and not in another."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared_nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(embedded(tmp_path_factory.mktemp("nats"))) as url,
    ):
        yield url


@pytest.fixture
async def nats_url(shared_nats_url: str) -> AsyncIterator[str]:
    """The URL of a real nats-server with JetStream that only this test uses, and that holds nothing yet."""
    yield shared_nats_url
    async with connect(shared_nats_url) as link:
        names = (await link.api("STREAM.NAMES"))["streams"] or ()

        async def clear(name: str) -> None:
            await link.api(f"STREAM.PURGE.{name}")  # one made again at once may find what its folder still held
            await link.api(f"STREAM.DELETE.{name}")

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(clear, name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 1 GB; a test may resize it."""
    with disks.mounted(tmp_path / "disk", "1g") as place:
        yield place


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The patterns whose subjects were asked for since the test began."""
    asked: list[str] = []
    subjects_of = Ledger.subjects

    async def noted(self: Ledger, filter_subject: str) -> set[str]:
        asked.append(filter_subject)
        return await subjects_of(self, filter_subject)

    monkeypatch.setattr(Ledger, "subjects", noted)
    return asked


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition)` returns when the condition holds and fails when it does not within a minute."""

    async def wait_until(condition: Callable[[], object]) -> None:
        with anyio.move_on_after(60.0):
            while not condition():  # noqa: ASYNC110 - what it waits for happens in other processes
                await anyio.sleep(0.01)
            return
        pytest.fail("the condition did not hold within a minute")

    return wait_until
