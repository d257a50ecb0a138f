"""Servers of a cluster are killed in turn while a stream goes on: its standing jobs' answers go on, none twice and none
missing, and jobs are submitted meanwhile."""

import random
from pathlib import Path

import anyio
import pytest
from clips import first_seconds
from clusters import running_cluster
from nodes import SCENES, running_nodes

from engine.run.registry import open_registry
from engine.spec.stream import StreamSpec
from engine.spec.workflow import parse_workflow
from penstock.client import connect
from streams import subjects
from streams.media.segmenter import segments
from streams.records import EndOfStream, encode
from streams.wire.ledger import open_ledger
from streams.wire.link import connect as connect_link

pytestmark = pytest.mark.anyio
SEED = 5
NUM_KILLS = 4
SUBMIT_S = 20.0  # far above what it takes, which bench/cluster.py measures


async def test_answers_go_on_whichever_server_is_killed(tmp_path: Path) -> None:
    clip = first_seconds(tmp_path / "clip.mp4", 16.0)
    records = list(segments(str(clip), stream="cam", target_s=1.0))
    num_segments = len(records) - 1
    seeded = random.Random(SEED)
    kills_at = sorted(seeded.sample(range(1, num_segments), NUM_KILLS))
    workflow = parse_workflow(SCENES)
    with running_cluster(tmp_path / "cluster") as cluster:
        await cluster.ready()
        async with connect(cluster.url) as client, connect_link(cluster.url) as link:
            ledger, registry = await open_ledger(link), await open_registry(link)
            names = (await link.api("STREAM.NAMES"))["streams"]
            for name in names:
                assert (await link.api(f"STREAM.INFO.{name}"))["config"]["num_replicas"] == 3, name
            await registry.declare(StreamSpec(name="cam", segment_s=1.0))
            with running_nodes(cluster.url, tmp_path, 2):
                jobs = [await client.submit("cam", workflow=workflow, standing=True, id="first")]
                for number, record in enumerate(records):
                    if number in kills_at:
                        victim = seeded.randrange(3)
                        cluster.kill(victim)
                        with anyio.fail_after(SUBMIT_S):
                            jobs.append(
                                await client.submit(
                                    "cam", workflow=workflow, standing=True, start="0", id=f"after-{number}"
                                )
                            )
                    subject = (
                        subjects.media_end("cam")
                        if isinstance(record, EndOfStream)
                        else subjects.media("cam", record.index)
                    )
                    await ledger.put(subject, encode(record))
                    if number in kills_at:
                        cluster.start(victim)
                        await cluster.whole(link)
                with anyio.fail_after(120):
                    for job in jobs:
                        assert [answer.last async for answer in job.answers()] == list(range(num_segments)), job.id
