"""Fused or apart, the demo's stages find the same: every way of grouping them gives the same ledger."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
import running
from clips import EXAMPLES, first_seconds

from engine.spec.catalogue import installed
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.workflow import load_workflow
from streams.media.segmenter import segments
from streams.records import Gap, decode_result, encode
from streams.wire.ledger import open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio
SEGMENT_S, CLIP_S = 2.0, 4.0


def partitions(items: list[str]) -> Iterator[list[list[str]]]:
    """Every way to split items into groups."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for partition in partitions(rest):
        yield [[first], *partition]
        for number, group in enumerate(partition):
            yield [*partition[:number], [first, *group], *partition[number + 1 :]]


async def test_every_grouping_gives_the_same_results(nats_url: str, tmp_path: Path) -> None:
    clip = first_seconds(tmp_path / "clip.mp4", CLIP_S)
    asked = load_workflow(EXAMPLES / "video_qa.toml").for_asks(["Where can I park my car?"])
    plan = make_plan(asked, installed(), Machine(num_cores=2))
    every = list(partitions([stage.id for stage in plan.stages]))
    assert len(every) == 15
    seen: dict[int, dict[str, bytes]] = {}
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        # A job that nobody feeds keeps the models loaded from one grouping to the next.
        async with running.asked(ledger, plan, "unfed"), running.workers(ledger, installed()):
            for number, groups in enumerate(every):
                stream = f"grouping-{number}"
                grouped = plan.regrouped(groups)
                with anyio.fail_after(60):
                    read = partial(segments, str(clip), stream=stream, target_s=SEGMENT_S)
                    await running.answered(ledger, installed(), grouped, stream, read)
                seen[number] = {}
                for name, stored in (
                    await ledger.get_many(await ledger.subjects(f"penstock.results.*.{stream}.*"))
                ).items():
                    record = decode_result(stored.data)
                    assert not isinstance(record, Gap)
                    bare = msgspec.structs.replace(record, measured=None, stream="")
                    seen[number][name.replace(stream, "")] = encode(bare)
    assert len(seen[0]) == 3 * CLIP_S / SEGMENT_S + 1
    assert all(found == seen[0] for found in seen.values())
