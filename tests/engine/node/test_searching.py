"""Searching over a real ledger: what is stored is found, what has gone is not, whoever asks."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import msgspec
import pytest
from sites import site

from engine.node.outputs import MAX_APART
from engine.node.searching import Hit, Search, Searching, checked
from engine.node.submission import submit_whole
from engine.run.registry import Registry, open_registry
from engine.spec.catalogue import installed
from engine.spec.jobs import BUCKET
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from operators.heard import Speech, Transcript
from operators.language.index import PassageIndex
from penstock.client import connect as client_of
from streams import subjects
from streams.errors import Transient, UserError
from streams.records import Gap, Result, encode
from streams.subjects import Key
from streams.wire.kv import open_bucket
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect
from streams.wire.service import serve

pytestmark = pytest.mark.anyio
S = 1_000_000_000


class Here:
    """What is stored, and an index over it."""

    def __init__(self, registry: Registry, ledger: Ledger, folder: Path) -> None:
        self.registry = registry
        self.ledger = ledger
        self.index = PassageIndex(folder / "index.sqlite")
        self.searching = Searching(registry, ledger, installed(), self.index)
        hearing = Workflow(name="hear", stages={"speech": Stage(capability="transcribe", inputs={"media": "media"})})
        self.plan: Plan = make_plan(hearing, installed(), Machine(num_cores=1))

    @property
    def stage(self) -> str:
        return self.plan.stages[0].id

    async def job(self, stream: str, title: str = "") -> None:
        spec = StreamSpec(name=stream, title=title)
        await self.registry.declare(spec)
        await submit_whole(self.registry, self.ledger, self.plan, spec)

    async def said(self, stream: str, index: int, text: str) -> None:
        """Have a segment's text stored."""
        heard = Transcript(observations=(Speech(start_ns=index * 5 * S, end_ns=(index * 5 + 4) * S, text=text),))
        output = msgspec.Raw(encode(heard))
        result = Result(stage=self.stage, stream=stream, first=index, last=index, output=output)
        await self.put(stream, index, encode(result))

    async def put(self, stream: str, index: int, data: bytes) -> None:
        await self.ledger.put(subjects.result(self.stage, stream, Key.of(index)), data)

    async def find(self, text: str, *streams: str, num: int = 10) -> list[Hit]:
        with anyio.fail_after(20):
            return await self.searching.find(Search(text=text, streams=streams, num=num))

    async def texts(self, text: str, *streams: str) -> list[str]:
        return [hit.text for hit in await self.find(text, *streams)]


@pytest.fixture
async def here(nats_url: str, tmp_path: Path) -> AsyncIterator[Here]:
    async with connect(nats_url) as link:
        made = Here(await open_registry(link), await open_ledger(link), tmp_path)
        with closing(made.index):
            yield made


async def test_what_is_stored_is_found_and_what_has_come_since_too(here: Here) -> None:
    await here.job("a", title="monday.mp4")
    await here.job("b")
    await here.said("a", 3, "The train to Leeds is late.")
    await here.said("b", 0, "Chop the onions.")
    (hit,) = await here.find("a train?")
    assert hit == Hit(
        stream="a",
        start_s=15.0,
        end_s=19.0,
        kind="speech",
        text="The train to Leeds is late.",
        score=hit.score,
        title="monday.mp4",
    )
    await here.said("b", 9, "This train stops here.")
    assert sorted(await here.texts("train")) == ["The train to Leeds is late.", "This train stops here."]
    assert await here.texts("train", "b") == ["This train stops here."]
    assert len(await here.find("train", num=1)) == 1


async def test_what_is_gone_from_the_ledger_is_not_found(here: Here) -> None:
    for stream in ("a", "b"):
        await here.job(stream)
        await here.said(stream, 0, "A train.")
    assert len(await here.find("train")) == 2
    await here.ledger.purge(subjects.result(here.stage, "a", Key.of(0)))
    assert [hit.stream for hit in await here.find("train")] == ["b"]
    jobs = await open_bucket(here.ledger.link, BUCKET)
    (job,) = [job for job in await here.registry.jobs() if job.stream == "b"]
    await jobs.delete(job.id)
    with anyio.fail_after(20):
        while len(await here.registry.jobs()) > 1:  # noqa: ASYNC110 - others change it
            await anyio.sleep(0.01)
    assert await here.find("train") == []


async def test_of_a_stream_that_is_forgotten_nothing_stays_in_the_file(
    here: Here, nats_url: str, tmp_path: Path
) -> None:
    for stream in ("a", "b"):
        await here.job(stream)
        await here.said(stream, 0, f"The pelican of {stream}.")
    assert len(await here.find("pelican")) == 2
    async with site(nats_url, works=False, index=here.index) as there:
        for job in await here.registry.jobs():
            await there.services.cancel(job.id)
        await there.services.forget("a")
    kept = b""
    async for file in anyio.Path(tmp_path).glob("index.sqlite*"):
        kept += await file.read_bytes()
    assert b"pelican of b" in kept
    assert b"pelican of a" not in kept
    assert [hit.stream for hit in await here.find("pelican")] == ["b"]


async def test_a_gap_and_what_cannot_be_read_are_passed_over(here: Here) -> None:
    await here.job("a")
    await here.put("a", 0, b"garbage")
    await here.put("a", 1, encode(Gap(stage=here.stage, stream="a", first=1, last=1, cause="late")))
    wrong = Result(stage=here.stage, stream="a", first=2, last=2, output=msgspec.Raw(encode(7)))
    await here.put("a", 2, encode(wrong))
    await here.said("a", 3, "A train.")
    assert await here.texts("train") == ["A train."]


async def test_many_streams_are_looked_through_at_once(here: Here) -> None:
    for number in range(MAX_APART + 2):
        await here.job(f"s{number}")
        await here.said(f"s{number}", 0, f"Train {number} leaves.")
    await here.ledger.link.client.publish("penstock.results.odd.name.x y", b"")
    found = await here.find("train", num=100)
    assert {hit.stream for hit in found} == {f"s{number}" for number in range(MAX_APART + 2)}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Search(text="  "), "there is nothing to search for"),
        (Search(text="x" * 2001), "a text of 2001 characters: give at most 2000"),
        (Search(text="x", streams=("s",) * 1001), "1001 streams: name at most 1000"),
    ],
)
def test_what_nobody_should_search_for_is_refused(wanted: Search, said: str) -> None:
    with pytest.raises(UserError, match=said):
        checked(wanted)


async def test_a_stream_in_which_nothing_can_be_found_is_refused(here: Here) -> None:
    with pytest.raises(UserError, match="nothing was heard or read in a stream 'nope'"):
        await here.find("train", "nope")


async def test_an_index_that_takes_too_long_is_given_up_and_what_it_took_in_is_kept(
    here: Here, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.job("a")
    await here.said("a", 0, "A train.")
    monkeypatch.setattr(here.index, "fill", lambda: 1)
    async with site(nats_url, works=False, index=here.index) as there:
        there.services._searching = here.searching
        with pytest.raises(Transient, match=r"not searched within 0\.2 s; what was taken in is kept: try again"):
            await there.services.search(Search(text="train", timeout_s=0.2))
        monkeypatch.undo()
        assert [hit.text for hit in await there.services.search(Search(text="train"))] == ["A train."]


async def test_any_client_may_search_by_nats_http_or_python(here: Here, nats_url: str) -> None:
    await here.job("a")
    await here.said("a", 0, "A train.")
    async with site(nats_url, works=False, index=here.index) as there:
        there.services._searching = here.searching
        got = await there.http.post("/v1/search", json={"text": "train"})
        assert (got.status_code, [hit["text"] for hit in got.json()["hits"]]) == (200, ["A train."])
        bad = await there.http.post("/v1/search", json={"text": "train", "num": 0})
        assert bad.status_code == 400
        unknown = await there.http.post("/v1/search", json={"text": "train", "streams": ["nope"]})
        assert unknown.status_code == 400
        async with (
            serve(here.ledger.link, "penstock", "1.0.0", there.services.endpoints()),
            client_of(nats_url) as client,
        ):
            (hit,) = await client.search("train", ["a"], num=3)
            assert (hit.stream, hit.text) == ("a", "A train.")
            with pytest.raises(UserError, match="nope"):
                await client.search("train", ["nope"])


async def test_a_node_without_an_index_says_so(nats_url: str) -> None:
    async with site(nats_url, works=False) as there:
        with pytest.raises(UserError, match="this node keeps no index to search in"):
            await there.services.search(Search(text="train"))
