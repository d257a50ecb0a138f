"""Nodes are killed with SIGKILL while a stream goes on: its standing jobs' answers go on, none twice and none
missing."""

import random
from pathlib import Path

import anyio
import pytest
from clips import first_seconds
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
SEED = 11
NUM_KILLS = 5
SEGMENT_S = 1.0
CLIP_S = 24.0


async def test_answers_go_on_whichever_node_is_killed(nats_url: str, tmp_path: Path) -> None:
    clip = first_seconds(tmp_path / "clip.mp4", CLIP_S)
    records = list(segments(str(clip), stream="cam", target_s=SEGMENT_S))
    seeded = random.Random(SEED)
    kills_at = set(seeded.sample(range(1, len(records) - 1), min(NUM_KILLS, len(records) - 2)))
    async with connect(nats_url) as client, connect_link(nats_url) as link:
        ledger, registry = await open_ledger(link), await open_registry(link)
        await registry.declare(StreamSpec(name="cam", segment_s=SEGMENT_S))
        with running_nodes(nats_url, tmp_path, 2) as nodes:
            workflow = parse_workflow(SCENES)
            jobs = [await client.submit("cam", workflow=workflow, standing=True, id=f"job-{n}") for n in range(4)]
            for number, record in enumerate(records):
                if isinstance(record, EndOfStream):
                    await ledger.put(subjects.media_end("cam"), encode(record))
                else:
                    await ledger.put(subjects.media("cam", record.index), encode(record))
                if number in kills_at:
                    nodes.kill(seeded)
                    await anyio.to_thread.run_sync(nodes.start)
            num_segments = len(records) - 1
            with anyio.fail_after(120):
                for job in jobs:
                    answered = [answer.last async for answer in job.answers()]
                    assert answered == list(range(num_segments))
    assert num_segments > 8
