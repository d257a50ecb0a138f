"""Reading what a story is told from: the ledger, the jobs, and what workers remember."""

from collections.abc import Sequence

from engine.decide.answer import Answer
from engine.decide.story import Kept, Line, Remembered, lines_of
from engine.node.recalling import recalled
from engine.run.journal import STORY, Recall
from engine.run.registry import Registry
from engine.spec.jobs import JobSpec
from streams import subjects
from streams.decoding import from_json
from streams.errors import Malformed, PenstockError, UserError
from streams.records import Segment, decode_dead, decode_media, decode_result
from streams.subjects import PREFIX, Key
from streams.wire.ledger import Ledger, Noted

MAX_RECORDS = 20_000
NEAR = 64  # segments around one that others of its batch may be about


class Storyteller:
    """Tells of one stream."""

    def __init__(self, registry: Registry, ledger: Ledger, stream: str) -> None:
        self._registry = registry
        self._ledger = ledger
        self.stream = subjects.token(stream)

    async def segment(self, segment: int | None, stage: str = "") -> list[Line]:
        """What happened to a segment, or to all. Raises UserError where there is none, or no such stage."""
        jobs = [job for job in await self._registry.jobs() if job.stream == self.stream]
        names = _names(jobs)
        if stage and stage not in names.values():
            raise UserError(f"no stage {stage!r}: there are {', '.join(sorted(set(names.values()))) or 'none'}")
        kept = await self._kept(segment)
        if not kept:
            what = f"segment {segment} of stream" if segment is not None else "stream"
            raise UserError(f"nothing is kept of {what} {self.stream!r}: `penstock streams` shows those there are")
        told = lines_of(kept, names, await self._remembered(segment), await self._answers(segment), stage)
        return told if segment is None else [line for line in told if _is_about(line, segment)]

    async def answer(self, number: int) -> tuple[Answer, list[Line]]:
        """An answer about the stream, by its number from 1 in the order of storing, and what led to it: what happened
        to the segments that its evidence is from. Raises UserError where there are not so many."""
        answers = await self._answers(None)
        if not 1 <= number <= len(answers):
            raise UserError(f"answer {number}: stream {self.stream!r} has {len(answers)}")
        answer, stored_ns = answers[number - 1]
        jobs = [job for job in await self._registry.jobs() if job.stream == self.stream]
        names = _names([job for job in jobs if job.id == answer.job] or jobs)
        kept = await self._kept(None)
        segments = [each.record for each in kept if isinstance(each.record, Segment)]
        near = {
            segment.index
            for item in answer.evidence
            for segment in segments
            if segment.start_ns < item.end_s * 1e9 and segment.start_ns + segment.duration_ns > item.start_s * 1e9
        }
        near |= {index for gap in answer.gaps for index in range(gap.first, min(gap.last, gap.first + 8) + 1)}
        if not near:  # it rests on nothing: what there was to look at
            near = set(range(answer.first, min(answer.last, answer.first + 8) + 1))
        wanted = {note.stage for note in answer.stages}
        told = lines_of(kept, names, await self._remembered(None), [(answer, stored_ns)])
        last = answer.stages[-1].stage if answer.stages else ""
        return answer, [
            line
            for line in told
            if line.stage in ("", *wanted)
            and (line.stage == last or any(_is_about(line, index) for index in near) or line.what == "answered")
        ]

    # --- reading -------------------------------------------------------------------------------------------------

    async def _kept(self, segment: int | None) -> list[Kept]:
        found: list[Kept] = []
        patterns = (
            subjects.media_of(self.stream),
            subjects.results_of("*", self.stream),
            f"{PREFIX}.dead.*.{self.stream}.*",
        )
        for pattern in patterns:
            names = sorted(await self._ledger.subjects(pattern))[:MAX_RECORDS]
            for name in names:
                if segment is None or _is_near(name, segment):
                    try:
                        noted = await self._ledger.look(name)
                    except PenstockError:  # of one whose pieces are gone, nothing can be told
                        continue
                    if noted is not None and (each := _read(name, noted)) is not None:
                        found.append(each)
        return found

    async def _answers(self, segment: int | None) -> list[tuple[Answer, int]]:
        found: list[tuple[Answer, int]] = []
        every = subjects.answers("*", self.stream)
        last, seq = await self._ledger.last_seq(every), 0
        while seq < last and (noted := await self._ledger.next(every, seq + 1)) is not None:
            seq = noted.record.seq
            try:
                answer = from_json(noted.record.data, Answer)
            except Malformed:
                continue
            if segment is None or answer.first <= segment <= answer.last:
                found.append((answer, noted.stored_ns))
        return found

    async def _remembered(self, segment: int | None) -> list[Remembered]:
        """What the workers that are there remember; what does not come in time is left out."""
        return await recalled(self._ledger.link, STORY, Recall(stream=self.stream, segment=segment), Remembered)


def _names(jobs: Sequence[JobSpec]) -> dict[str, str]:
    return {stage.id: stage.name for job in jobs for stage in job.plan.stages}


def _read(name: str, noted: Noted) -> Kept | None:
    data = noted.record.data
    kind = name.split(".", 2)[1]
    try:
        record = decode_media(data) if kind == "media" else decode_dead(data) if kind == "dead" else decode_result(data)
    except Malformed:
        return None
    return Kept(record, noted.stored_ns, noted.record.seq, len(data), noted.record.due_ns)


def _is_near(name: str, segment: int) -> bool:
    """Whether a record may have to do with a segment: it is about it, or may have been computed beside it."""
    text = name.rpartition(".")[2]
    try:
        key = subjects.parse_key(text)
    except UserError:
        return False
    if name.split(".", 2)[1] == "media":
        return key == Key.of(segment)
    return key.first - NEAR <= segment <= key.last + NEAR


def _is_about(line: Line, segment: int) -> bool:
    first, _, last = line.segment.partition("-")
    return first.isdigit() and int(first) <= segment <= int(last or first)
