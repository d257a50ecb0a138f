"""Pictures of a stream with what was found in them: a film of a stretch, or one as a JPEG.

What is drawn is what is stored: of each capability that can be shown, the stage that the latest job brought.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec

from engine.node.outputs import outputs_of, stored_of
from engine.node.stretches import Kept, index_at, kept_of, moment_in, segment_of
from engine.run.registry import Registry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Media
from engine.spec.plan import PlannedStage
from operators.capabilities import WatchZonesParams
from operators.media.pictures import each_picture, picture_at
from operators.media.sound import AudioSpec, audio
from operators.media.writing import SOUND_RATE, Film, film_at, jpeg
from operators.vision.overlay import SHOWN, Overlay
from streams.errors import Permanent, UserError
from streams.records import Segment
from streams.subjects import Key
from streams.wire.ledger import Ledger

AROUND = 2  # segments: a track is drawn between its sightings, and what is said may have begun before
MAX_SEGMENTS = 20_000


class NothingThere(UserError):
    """What was asked for is not stored, or shows nothing."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """What became of a film."""

    num_pictures: int
    num_segments: int
    num_lost: int  # whose media are gone, or cannot be decoded


@dataclass(frozen=True, slots=True)
class Annotating:
    """Of one stream. `job`: only what this one's stages found; else the latest of each capability."""

    registry: Registry
    ledger: Ledger
    catalogue: Catalogue
    stream: str
    job: str = ""

    async def film(
        self,
        path: Path,
        start: str = "",
        end: str = "",
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Annotated:
        """Write a stretch of the stream, all that is stored of it by default, to `path` (MP4). Raises UserError where
        there is no such stretch, it has no pictures, or the file cannot be written."""
        indices = await self._stretch(start, end)
        overlay = await self._overlay(indices)
        num_lost = num_done = 0
        has_sound = False
        for index in indices:  # the first that is there says whether there is any
            if (segment := await segment_of(self.ledger, self.stream, index)) is not None:
                has_sound = any(track.kind == "audio" for track in segment.tracks)
                break
        with film_at(path, has_sound=has_sound) as film:
            for index in indices:
                segment = await segment_of(self.ledger, self.stream, index)
                drawn = segment is not None and await anyio.to_thread.run_sync(_draw, film, segment, overlay)
                num_lost += not drawn
                num_done += 1
                on_progress(num_done, len(indices))
            if not film.num_pictures:
                raise NothingThere(f"stream {self.stream!r} has no pictures there to draw into")
        return Annotated(film.num_pictures, len(indices) - num_lost, num_lost)

    async def snapshot(self, at: str, *, marked: bool = True) -> bytes:
        """The last picture at or before a moment, as a JPEG. Raises UserError where there is none."""
        segment, at_ns = await moment_in(self.ledger, self.stream, await self._kept(), at)
        overlay = await self._overlay([segment.index]) if marked else None
        return await anyio.to_thread.run_sync(_shot, segment, at_ns, overlay, abandon_on_cancel=True)

    async def _kept(self) -> Kept:
        kept = await kept_of(self.ledger, self.stream)
        if not kept.kept:
            there = ", ".join(sorted(await self.registry.streams())) or "none yet"
            raise NothingThere(f"nothing of a stream {self.stream!r} is stored; there are: {there}")
        return kept

    async def _stretch(self, start: str, end: str) -> Sequence[int]:
        kept = await self._kept()
        at = partial(index_at, self.ledger, self.stream, kept, is_live=True)
        first = await at(text=start) if start else kept.first
        last = await at(text=end) if end else kept.next - 1
        chosen = [index for index in kept.kept if first <= index <= last]
        if not chosen:
            raise UserError(f"no segment of {self.stream!r} in that range: it ends before it begins")
        if len(chosen) > MAX_SEGMENTS:
            raise UserError(f"a film of {len(chosen)} segments: give at most {MAX_SEGMENTS}, with --from and --to")
        return chosen

    async def _overlay(self, indices: Sequence[int]) -> Overlay:
        stages = await self._stages()
        stored = await stored_of(self.ledger, [(stage.id, self.stream) for stage in stages])
        found: list[Any] = []
        for stage in stages:
            output = self.catalogue.capabilities[stage.capability].output
            wanted = _near(stored[stage.id, self.stream], indices)
            found += (await outputs_of(self.ledger, wanted, output)).values()
        zones = [
            msgspec.convert(stage.params, WatchZonesParams) for stage in stages if stage.capability == "watch_zones"
        ]
        return Overlay(found, zones)

    async def _stages(self) -> Collection[PlannedStage]:
        """The latest of each capability that can be shown."""
        found: dict[str, PlannedStage] = {}
        for job in sorted(await self.registry.jobs(), key=lambda job: job.submitted_ns):
            if job.stream != self.stream or self.job not in ("", job.id):
                continue
            for stage in job.plan.stages:
                capability = self.catalogue.capabilities.get(stage.capability)
                if capability is not None and issubclass(capability.output, SHOWN):
                    found[stage.capability] = stage
        return found.values()


def _near(stored: Mapping[Key, str], indices: Sequence[int]) -> list[str]:
    """Subjects of the outputs that may be seen in these segments."""
    first, last = indices[0] - AROUND, indices[-1] + AROUND
    return [subject for key, subject in sorted(stored.items()) if key.last >= first and key.first <= last]


def _draw(film: Film, segment: Segment, overlay: Overlay) -> bool:
    """Add a segment to a film; false where it cannot be decoded."""
    before = film.num_pictures
    try:
        for at_ns, image in each_picture(segment):
            film.picture(at_ns, overlay.drawn(image, at_ns))
        if film.num_pictures:
            film.sound(audio(Media(segment), AudioSpec(SOUND_RATE)))
    except Permanent:
        pass
    return film.num_pictures > before


def _shot(segment: Segment, at_ns: int, overlay: Overlay | None) -> bytes:
    try:
        shown_ns, image = picture_at(segment, at_ns)
    except Permanent as error:
        raise NothingThere(str(error)) from error
    return jpeg(image if overlay is None else overlay.drawn(image, shown_ns))
