"""What Penstock keeps its records in is deleted or emptied under a running node."""

import shutil
from pathlib import Path

import anyio
import msgspec
import pytest
from live_service import Service, running_service

from engine.decide.answer import Answer
from engine.node.upkeep import keep_up, look_at
from streams import subjects
from streams.wire.follow import follow
from streams.wire.jetstream import config_of
from streams.wire.ledger import open_ledger
from streams.wire.link import Refused, connect
from streams.wire.retention import ANSWERS, MEDIA, RESULTS
from streams.wire.server import embedded

pytestmark = pytest.mark.anyio


async def answered(service: Service, job: str, last: int) -> dict[int, Answer]:
    """The answers that stand, by the last segment they look at, once this one is among them."""
    found: dict[int, Answer] = {}
    with anyio.fail_after(60):
        async for stored in follow(service.ledger, subjects.answers(job, "s")):
            answer = msgspec.json.decode(stored.data, type=Answer)
            found[answer.last] = answer
            if answer.last == last:
                return found
    raise AssertionError("following does not end")


@pytest.mark.parametrize("name", [MEDIA, RESULTS, ANSWERS])
async def test_a_stream_that_is_deleted_is_made_again_and_the_job_goes_on(nats_url: str, name: str) -> None:
    async with running_service(nats_url) as service, anyio.create_task_group() as tasks:
        service.work()
        service.stand_by()
        await tasks.start(keep_up, service.ledger.link)
        job = await service.submit(standing=True, window_s=2.0)
        await service.publish([1, 2, 3, 4, 5])
        await answered(service, job.job, 4)
        await service.ledger.link.api(f"STREAM.DELETE.{name}")
        await service.publish([6, 7, 8, 9], first=5, end=True)
        later = await answered(service, job.job, 8)
        assert later[8].output["value"] == 8 + 9
        with anyio.fail_after(30):
            while (await service.registry.job(job.job)).state != "done":  # noqa: ASYNC110 - another task decides
                await anyio.sleep(0.02)
        tasks.cancel_scope.cancel()


def take_away_folder(store: Path, name: str) -> None:
    (folder,) = store.rglob(name)
    shutil.rmtree(folder)


async def test_a_stream_whose_folder_the_server_took_away_while_it_was_made_is_deleted_to_be_made_again(
    tmp_path: Path,
) -> None:
    async with embedded(tmp_path) as url, connect(url) as link:
        ledger = await open_ledger(link)
        await look_at(link, MEDIA)
        await config_of(link, MEDIA)  # is as it was
        take_away_folder(tmp_path, MEDIA)  # as the server does where the stream before it is still on its way out
        await look_at(link, MEDIA)
        with pytest.raises(Refused, match="not found"):
            await config_of(link, MEDIA)
        await look_at(link, MEDIA)  # nothing is there to look at
        await open_ledger(link)
        await look_at(link, MEDIA)
        await ledger.put(subjects.media("s", 0), b"1", "", 0)
