"""Searching: what was said or shown in any of the streams that are kept, by what their stages found.

An index is filled from the ledger when somebody searches: what has come since is taken in, what has gone, because it
fell out of retention or its stream was forgotten, is dropped, so nothing is found that is not kept.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Protocol

import anyio
import anyio.to_thread
import msgspec

from engine.node.outputs import Pair, giving, outputs_of, stored_of
from engine.run.registry import Registry
from engine.spec.catalogue import Catalogue
from streams.errors import UserError
from streams.records import Record
from streams.subjects import Key
from streams.wire.ledger import Ledger

MAX_TEXT = 2000
MAX_STREAMS = 1000
MAX_OUTPUTS_AT_ONCE = 4096  # an index makes a stream's passages anew each time
MAX_FOUND = 100

Places = set[tuple[int, int]]  # first and last segments of outputs


class Found(Protocol):
    """A passage that an index found; a higher score is nearer."""

    @property
    def stream(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...


class Index(Protocol):
    """What passages are kept in and found by, such as `operators.language.index`; called in threads."""

    def takes(self, kind: type) -> bool:
        """Whether outputs of this type can be found."""

    def known(self, source: str, stream: str) -> Places:
        """Which outputs of a stage on a stream it has."""

    def keep_only(self, pairs: Collection[Pair]) -> None:
        """Drop what is of other stages and streams."""

    def update(
        self,
        source: str,
        stream: str,
        added: Mapping[tuple[int, int], Any],
        gone: Collection[tuple[int, int]] = (),
    ) -> None:
        """Take in outputs of a stage on a stream, and drop others."""

    def forget(self, stream: str) -> None:
        """Drop what is of a stream, for good."""

    def fill(self) -> int:
        """Prepare some of what was taken in; how much is left to prepare."""

    def search(self, text: str, num: int, streams: Collection[str] | None = None) -> Sequence[Found]:
        """The passages that are nearest to a text, the nearest first."""


class Search(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody searches for. Without `streams`, in all of them."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT)]
    streams: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_STREAMS)] = ()
    num: Annotated[int, msgspec.Meta(ge=1, le=MAX_FOUND)] = 10
    timeout_s: float = 60.0


class Hit(Record, frozen=True, omit_defaults=False):
    """A passage, and where it is: in media time of its stream. Scores compare within one search only."""

    stream: str
    start_s: float
    end_s: float
    kind: str
    text: str
    score: float
    title: str = ""  # what people call the stream, where its name is a hash


def checked(wanted: Search) -> Search:
    """Raises UserError for what nobody should search for."""
    if not wanted.text.strip():
        raise UserError("there is nothing to search for: give some words")
    if len(wanted.text) > MAX_TEXT:
        raise UserError(f"a text of {len(wanted.text)} characters: give at most {MAX_TEXT}")
    if len(wanted.streams) > MAX_STREAMS:
        raise UserError(f"{len(wanted.streams)} streams: name at most {MAX_STREAMS}, or none for all")
    return wanted


class Searching:
    """Searches in what one ledger keeps. `on_progress` is told how many passages an index has still to prepare."""

    def __init__(self, registry: Registry, ledger: Ledger, catalogue: Catalogue, index: Index) -> None:
        self._registry = registry
        self._ledger = ledger
        self._catalogue = catalogue
        self._index = index
        self._filling = anyio.Lock()

    async def find(self, wanted: Search, on_progress: Callable[[int], None] = lambda num: None) -> list[Hit]:
        """The nearest first. Raises UserError for a stream of which nothing can be found."""
        checked(wanted)
        pairs = await giving(self._registry, self._catalogue, self._index.takes)
        there = {stream for _, stream in pairs}
        for name in wanted.streams:
            if name not in there:
                raise UserError(
                    f"nothing was heard or read in a stream {name!r}: `penstock streams` shows those there are"
                )
        async with self._filling:
            await anyio.to_thread.run_sync(self._index.keep_only, set(pairs))
            asked = [pair for pair in pairs if not wanted.streams or pair[1] in wanted.streams]
            for pair, stored in (await stored_of(self._ledger, asked)).items():
                await self._catch_up(pair, stored, pairs[pair])
            while (num := await anyio.to_thread.run_sync(self._index.fill)) > 0:
                on_progress(num)
        among = set(wanted.streams) or None
        found = await anyio.to_thread.run_sync(self._index.search, wanted.text, wanted.num, among)
        titles = {name: spec.title for name, spec in (await self._registry.streams()).items()}
        return [
            Hit(
                stream=each.stream,
                start_s=each.start_ns / 1e9,
                end_s=each.end_ns / 1e9,
                kind=each.kind,
                text=each.text,
                score=each.score,
                title=titles.get(each.stream, ""),
            )
            for each in found
        ]

    async def forget(self, stream: str) -> None:
        """Keep nothing of a stream, that is no longer in the ledger."""
        async with self._filling:
            await anyio.to_thread.run_sync(self._index.forget, stream)

    async def _catch_up(self, pair: Pair, stored: Mapping[Key, str], kind: type[msgspec.Struct]) -> None:
        """Have the index hold what the ledger does."""
        source, stream = pair
        known = await anyio.to_thread.run_sync(self._index.known, source, stream)
        gone = known - set(stored)
        lacking = [stored[key] for key in sorted(set(stored) - known)]
        for start in range(0, len(lacking), MAX_OUTPUTS_AT_ONCE):
            added = await outputs_of(self._ledger, lacking[start : start + MAX_OUTPUTS_AT_ONCE], kind)
            if added or gone:
                await anyio.to_thread.run_sync(self._index.update, source, stream, added, gone)
                gone = set()
        if gone:
            await anyio.to_thread.run_sync(self._index.update, source, stream, {}, gone)
