"""A stage whose other inputs say which pictures it looks at: those are decoded ahead of it, and no others."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import anyio
import msgspec
import numpy as np
import pytest
import running

from engine.spec.catalogue import Catalogue
from engine.spec.operator import Capability, Inputs, Machine, Media, Operator, Port, Rung, Settings
from engine.spec.plan import make_plan
from engine.spec.workflow import Stage, Workflow
from operators.media.pictures import FrameSpec
from operators.media.taking import Frames
from operators.seen import Moments
from operators.testing.film import film
from operators.vision.select_frames import SelectFrames
from streams.records import EndOfStream, Evidence, MediaMessage, Observation
from streams.wire.ledger import open_ledger
from streams.wire.link import connect

pytestmark = pytest.mark.anyio


class Peek(Operator):
    """Tells what was decoded for it."""

    capability = Capability("peek", {"media": Port(Media), "moments": Port(Moments)}, Evidence)
    name = "peeking"
    decoded: ClassVar[list[FrameSpec]] = []

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("peeking", 0.5, Settings())]

    def demands(self) -> tuple[Any, ...]:
        return (FrameSpec(moments_ns=()),)

    def demands_for(self, inputs: Inputs) -> tuple[Any, ...]:
        return (FrameSpec(moments_ns=tuple(each.start_ns for each in inputs.here("moments").observations)),)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Evidence]:
        return [self._told(item) for item in batch]

    def _told(self, item: Inputs) -> Evidence:
        (wanted,) = self.demands_for(item)
        Peek.decoded += item.here("media").products
        found: Frames = item.here("media").products[wanted]
        seen = zip(found.times_ns.tolist(), found.images[:, 0, 0, 0].tolist(), strict=True)
        return Evidence(observations=tuple(Observation(at_ns, at_ns, str(red)) for at_ns, red in seen))


def read(stream: str) -> Callable[[], Iterator[MediaMessage]]:
    def media() -> Iterator[MediaMessage]:
        pictures = np.repeat(np.arange(40, dtype=np.uint8), 8 * 8 * 3).reshape(40, 8, 8, 3)
        for segment in film(pictures, frames_per_s=5, segment_s=4):
            yield msgspec.structs.replace(segment, stream=stream)
        yield EndOfStream(stream=stream, num_segments=2, duration_ns=8 * 10**9)

    return media


@pytest.mark.parametrize("together", [True, False])
async def test_what_is_looked_at_is_decoded_and_nothing_else(nats_url: str, together: bool) -> None:
    catalogue = Catalogue([SelectFrames, Peek])
    stages = {
        "chosen": Stage(capability="select_frames", inputs={"media": "media"}),
        "peek": Stage(capability="peek", inputs={"media": "media", "moments": "chosen"}),
    }
    plan = make_plan(Workflow(name="peeked", stages=stages), catalogue, Machine(num_cores=1))
    ids = [stage.id for stage in plan.stages]
    plan = plan.regrouped([ids] if together else [[each] for each in ids])
    Peek.decoded.clear()
    stream = f"peeked-{together}"
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        async with running.workers(ledger, catalogue):
            with anyio.fail_after(60):
                answers = await running.answered(ledger, catalogue, plan, stream, read(stream))
    found = [[each["text"] for each in answer.output["observations"]] for answer in answers]
    assert found == [["1", "3", "6", "8", "11", "13", "16", "18"], ["21", "23", "26", "28", "31", "33", "36", "38"]]
    assert sorted(len(spec.moments_ns or ()) for spec in Peek.decoded if spec.moments_ns != ()) == [8, 8]
