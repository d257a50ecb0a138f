"""Readiness: which outputs of a group can be computed now. Pure: what was stored comes in, instructions go out.

A group is fed *messages*; each says that something was stored. What is stored contributes to outputs (`joins`), and an
output whose inputs are all stored is computed by the one arrival that was stored last. The shell does what it is told
(`Read`, `Compute`, `GiveGap`, `Release`, `Acknowledge`, `Redeliver`) and comes back with what became of it; it never
has an opinion.

```
arrived -> Read -> found -> Compute -> computed elsewhere, then placed -> Acknowledge
                         \\-> GiveGap -> placed                         \\-> what the stored output sets off in turn
                                        failed -> Redeliver, or GiveGap
```

Each output goes this way by itself, so nothing waits for a neighbour it does not need. A message is acknowledged when
nothing it set off is left to do. A death before that brings it again, and what is stored by then is passed over.

Two arrivals may complete the same output, for it may be made from records of two JetStream streams, and a message may
come again. Whichever comes second while the first is at it waits for the same output: were it acknowledged meanwhile,
and the acknowledgement of an earlier coming of the first under way, a death would lose the output. The invariants are
in `validate`.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.decide import gating, joins, lateness, retry
from engine.decide.instructions import (
    OPEN,
    Compute,
    Event,
    Found,
    GiveGap,
    Instruction,
    Known,
    Output,
    Read,
    Redeliver,
    Release,
    StageRule,
)
from engine.decide.messages import Message, Messages
from engine.decide.stored_keys import StoredKeys
from engine.spec.operator import Fold, PerRange, Reduce, Window
from engine.spec.workflow import MEDIA
from streams.records import GapCause
from streams.subjects import Key


class Readiness:
    """The rule for one group over one stream. Every method that takes an event returns what is to be done now, in
    order; `now_ns` is the server's time, for what is due is due by its clock."""

    def __init__(self, stages: Sequence[StageRule], policy: retry.RetryPolicy, *, releases: bool = False) -> None:
        self.end: tuple[int, int] | None = None
        self._policy = policy
        self._releases = releases
        self._stored: dict[str, StoredKeys] = {}
        self._messages = Messages()
        self.names: Mapping[str, str] = {}  # of stages outside the group, for people
        self._tails: dict[str, int] = {}
        self._lacking: dict[Output, tuple[str, int]] = {}  # of ranges: the input that was missing when last looked at
        self.serve(stages)

    def serve(self, stages: Sequence[StageRule]) -> None:
        """Go by these from now on: the same stages, perhaps asked for by other jobs."""
        self.stages = {stage.id: stage for stage in stages}
        self._readers = [stage for stage in stages if MEDIA in stage.sources]
        self._by_source: dict[str, list[StageRule]] = {}
        for stage in stages:
            self._stored.setdefault(stage.id, StoredKeys())
            own = {stage.id} if isinstance(stage.scope, Fold) else set()
            for source in stage.awaited | own:
                self._by_source.setdefault(source, []).append(stage)

    def remember(self, stage_id: str, keys: Iterable[Key]) -> None:
        """These outputs of a stage are stored."""
        stored = self._stored[stage_id]
        for key in keys:
            stored.add(key)

    @property
    def num_segments(self) -> int | None:
        return None if self.end is None else self.end[1]

    @property
    def num_under_way(self) -> int:
        """Messages that are not done."""
        return len(self._messages)

    # --- events ------------------------------------------------------------------------------------------------

    def arrived(self, event: Event, now_ns: int, num_segments: int | None = None) -> list[Instruction]:
        """A message was delivered: this is stored. At the stream's end (key None), `num_segments` says how many."""
        if event.key is None and num_segments is not None:
            self.end = (event.known.seq, num_segments)
        if self._messages.get(event.root) is not None:
            return []  # it comes again while its first coming is under way, which answers for both
        root = self._messages.come(event.root)
        out: list[Instruction] = []
        self._consider(event, root, out, now_ns)
        self._messages.close(event.root, root, out, "it sets nothing off here")
        return out

    def found(self, read: Read, found: Found, now_ns: int) -> list[Instruction]:
        """What a `Read` came to."""
        root = self._messages.get(read.event.root)
        if root is None:
            return []
        root.num_open -= 1
        out: list[Instruction] = []
        if found.end is not None:
            self.end = found.end
        self._tails.update(found.tails)
        if self._judge(read, found, root, out, now_ns) and read.rest:
            self._look(read.stage, read.rest, read.event, root, out)
        self._messages.close(read.event.root, root, out, "another arrival completes what it is part of")
        return out

    def placed(self, done: Compute | GiveGap, known: Known, now_ns: int) -> list[Instruction]:
        """An output stands in the ledger, whoever stored it: `known` is what stands there."""
        stage, key = done.stage, done.key
        self._stored[stage.id].add(key)
        self._lacking.pop(done.output, None)
        out: list[Instruction] = []
        for event, root in self._messages.ended(done):
            if stage.read_inside and stage.id in self.stages:
                self._consider(self._following(event, stage.id, key, known), root, out, now_ns)
            self._messages.close(event.root, root, out, "all that it set off is stored")
        if self._releases and MEDIA in stage.sources:
            self._release(stage, key, out)
        return out

    def late(self, work: Compute, why: str) -> list[Instruction]:
        """An output's time had passed before its turn came."""
        return self._gap_instead(work, "late", why)

    def failed(self, work: Compute, error: Exception, jitter: float) -> list[Instruction]:
        """Computing an output failed; `jitter` in 0.5 .. 1.5 spreads what is tried again."""
        verdict = retry.after_failure(error, work.event.num_delivered, self._policy, jitter)
        if isinstance(verdict, retry.GiveUp):
            return self._gap_instead(work, "dead_lettered", verdict.cause, is_dead=True)
        return self.abandoned(work, verdict.delay_s, f"{work.stage.name} failed: {retry.cause_of(error)}")

    def abandoned(self, done: Read | Compute | GiveGap, delay_s: float, why: str) -> list[Instruction]:
        """What was told could not be done: the message comes again, and finds what is left."""
        if isinstance(done, Read):
            root = self._messages.get(done.event.root)
            ended = [] if root is None else [(done.event, root)]
            if root is not None:
                root.num_open -= 1
        else:
            ended = self._messages.ended(done)
        out: list[Instruction] = []
        for event, root in ended:
            if root.again is None or root.again.delay_s < delay_s:
                root.again = Redeliver(event.root, delay_s, why)
            self._messages.close(event.root, root, out, why)
        return out

    def is_wanted(self, work: Compute | GiveGap) -> bool:
        """Whether any message still waits for this work."""
        return self._messages.is_made(work)

    def forget(self, root: int) -> None:
        """A message was handed back: what comes of it now concerns nobody here."""
        self._messages.forget(root)

    def validate(self) -> None:
        """The invariants, for tests."""
        self._messages.validate()

    # --- from events to outputs --------------------------------------------------------------------------------

    def _consider(self, event: Event, root: Message, out: list[Instruction], now_ns: int) -> None:
        """Whatever an event may complete."""
        key = event.key
        if key is None:
            for stage in self.stages.values():
                if isinstance(stage.scope, Reduce):
                    keys = self._ranges(stage, None)
                else:
                    ended = joins.outputs_of_end(stage.scope, self.num_segments or 0)
                    keys = [each for each in ended if stage.running.owes(each)]
                self._look(stage, keys, event, root, out)
            return
        for stage in self._by_source.get(event.source, ()):
            if stage.is_plain and (event.num_delivered == 1 or isinstance(stage.scope, PerRange)):
                if stage.running.owes(key):
                    self._plain(stage, key, event, root, out, now_ns)
                continue
            if isinstance(stage.scope, Reduce):
                keys = self._ranges(stage, key)
            elif event.source == stage.id:
                keys = joins.outputs_of_own(stage.scope, key, self.num_segments)
            else:
                keys = joins.outputs_of(stage.scope, key.first, self.num_segments)
            if not isinstance(stage.scope, Reduce):
                keys = [each for each in keys if stage.running.owes(each)]
            self._look(stage, keys, event, root, out)

    def _plain(
        self, stage: StageRule, key: Key, event: Event, root: Message, out: list[Instruction], now_ns: int
    ) -> None:
        if key in self._stored[stage.id]:
            if stage.read_inside:
                self._read(Read(stage, key, event, own=True), root, out)
        else:
            self._begin(stage, key, event, {event.source: {key.last: event.known}}, None, root, out, now_ns)

    def _look(self, stage: StageRule, keys: Sequence[Key], event: Event, root: Message, out: list[Instruction]) -> None:
        """Look at outputs one behind the other: of windows, once one lacks a later input all behind it do."""
        for at, key in enumerate(keys):
            read = self._read_for(stage, key, event)
            if read is not None:
                self._read(msgspec.structs.replace(read, rest=tuple(keys[at + 1 :])), root, out)
                return

    def _read_for(self, stage: StageRule, key: Key, event: Event) -> Read | None:
        """What must be known before it can be said whether this output is complete; None where it need not be."""
        if key.last == OPEN:
            if self.end is not None:
                if key.first >= self.end[1]:
                    return None
                key = Key(key.first, self.end[1] - 1)
            alike = tuple(source for source in stage.sources if (source == MEDIA) == (event.source == MEDIA))
            if event.known.seq < max((self._tails.get(source, 0) for source in alike), default=0):
                return None  # something was stored behind it, and will come
            if alike and key not in self._stored[stage.id]:
                return Read(stage, key, event, tails=alike, end=self.end is None)
        if key in self._stored[stage.id]:
            return Read(stage, key, event, own=True) if stage.read_inside else None
        lacking = self._lacking.get((stage.id, key))
        if lacking is not None and (self.end is None or lacking[1] < self.end[1]):
            source, index = lacking
            return Read(stage, key, event, {source: range(index, index + 1)}, end=self.end is None, is_probe=True)
        return self._read_all(stage, key, event)

    def _read_all(self, stage: StageRule, key: Key, event: Event) -> Read | None:
        wanted = joins.needs(stage.scope, key, self.num_segments)
        if not wanted:
            return None
        return Read(
            stage,
            key,
            event,
            wants=dict.fromkeys(stage.sources, wanted),
            previous=key.first - 1 if isinstance(stage.scope, Fold) and key.first > 0 else None,
            own=event.num_delivered > 1 or stage.asks_own,
            end=self.end is None and joins.needs_end(stage.scope),
        )

    def _judge(self, read: Read, found: Found, root: Message, out: list[Instruction], now_ns: int) -> bool:
        """Go by what was found of one output; whether the outputs behind it are still worth a look."""
        stage, key, event = read.stage, read.key, read.event
        if stage.id not in self.stages:
            return False
        if read.tails:
            if self.end is None or self.end[1] <= key.first:
                return True
            if event.known.seq >= max(self._tails.get(source, 0) for source in read.tails):
                again = self._read_all(stage, Key(key.first, self.end[1] - 1), event)
                if again is not None:
                    self._read(msgspec.structs.replace(again, rest=read.rest), root, out)
                    return False
            return True
        if found.own is not None:
            self._stored[stage.id].add(key)
            if stage.read_inside:
                self._consider(self._following(event, stage.id, key, found.own), root, out, now_ns)
            return True
        if not read.wants:
            return True
        if read.is_probe:
            ((source, wanted),) = read.wants.items()
            is_beyond = self.end is not None and wanted.start >= self.end[1]
            if is_beyond or wanted.start in found.inputs.get(source, ()):
                again = self._read_all(stage, key, event)
                if again is not None:
                    self._read(msgspec.structs.replace(again, rest=read.rest), root, out)
                    return False
            return True
        wanted = joins.needs(stage.scope, key, self.num_segments)
        if not wanted:
            return True
        lacking = self._first_lacking(stage, read, found, wanted)
        if lacking is not None:
            if isinstance(stage.scope, Reduce):
                self._lacking[stage.id, key] = lacking
            return not (isinstance(stage.scope, Window) and event.key is not None and lacking[1] > event.key.first)
        if self._acts(stage, read, found, wanted):
            if key in self._stored[stage.id]:  # by another, while this one was looking
                if stage.read_inside:
                    self._read(Read(stage, key, event, own=True), root, out)
            else:
                inputs = {source: {at: found.inputs[source][at] for at in wanted} for source in stage.sources}
                self._begin(stage, key, event, inputs, found.previous, root, out, now_ns)
        return True

    @staticmethod
    def _first_lacking(stage: StageRule, read: Read, found: Found, wanted: range) -> tuple[str, int] | None:
        for source in stage.sources:
            there = found.inputs.get(source, {})
            for index in wanted:
                if index not in there:
                    return source, index
        if read.previous is not None and found.previous is None:
            return stage.id, read.previous
        return None

    def _acts(self, stage: StageRule, read: Read, found: Found, wanted: range) -> bool:
        """Whether this arrival is the one to compute: none of the inputs in its JetStream stream was stored later."""
        on_media = read.event.source == MEDIA
        seqs = [
            found.inputs[source][index].seq
            for source in stage.sources
            if (source == MEDIA) == on_media
            for index in wanted
        ]
        if found.previous is not None and not on_media:
            seqs.append(found.previous.seq)
        spans = stage.running.spans
        if on_media and self.end is not None and joins.is_bounded(stage.scope, read.key, spans, self.end[1]):
            seqs.append(self.end[0])
        return joins.acts(read.event.known.seq, seqs)

    def _begin(
        self,
        stage: StageRule,
        key: Key,
        event: Event,
        inputs: Mapping[str, Mapping[int, Known]],
        previous: Known | None,
        root: Message,
        out: list[Instruction],
        now_ns: int,
    ) -> None:
        """This output is complete: compute it, or say at once why there will be none."""
        if self._messages.wait_for((stage.id, key), event, root):
            return
        work: Compute | GiveGap
        due_ns = lateness.due_of(key, event.known.due_ns, inputs)
        expires_ns = lateness.expires_ns(stage.running, key, due_ns, stage.lead_ns)
        lost = retry.before_attempt(event.num_delivered, self._policy)
        if lost is not None:
            work = GiveGap(stage, key, event, inputs, due_ns, "dead_lettered", lost.cause, is_dead=True)
        elif lateness.is_late(expires_ns, now_ns):
            work = GiveGap(stage, key, event, inputs, due_ns, "late", lateness.said_of(due_ns, now_ns))
        elif (lacks := gating.gap_above(stage, key, inputs, self._name_of)) is not None:
            work = GiveGap(stage, key, event, inputs, due_ns, "upstream", lacks)
        else:
            held_back = gating.shut(stage, key, inputs, self._name_of)
            why = held_back or "all its inputs are stored"
            work = Compute(stage, key, event, inputs, due_ns, why, previous, expires_ns, bool(held_back))
        self._messages.make(work)
        out.append(work)

    def _name_of(self, source: str) -> str:
        if source in self.stages:
            return self.stages[source].name
        return MEDIA if source == MEDIA else self.names.get(source, source)

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _ranges(self, stage: StageRule, key: Key | None) -> list[Key]:
        """The ranges asked of a stage that this segment, or the stream's end, belongs to."""
        return [
            Key(span.first, OPEN if span.last is None else span.last)
            for span in stage.running.spans
            if (span.holds(self.num_segments or 0) if key is None else span.holds(key.first))
        ]

    @staticmethod
    def _following(event: Event, source: str, key: Key, known: Known) -> Event:
        """What a stored output sets off, on behalf of the same message."""
        return Event(source, key, known, event.root, event.num_delivered, max(known.since_ns, event.since_ns))

    @staticmethod
    def _read(read: Read, root: Message, out: list[Instruction]) -> None:
        root.num_open += 1
        out.append(read)

    def _gap_instead(self, work: Compute, cause: GapCause, why: str, *, is_dead: bool = False) -> list[Instruction]:
        gap = GiveGap(work.stage, work.key, work.event, work.inputs, work.due_ns, cause, why, is_dead, was_to_be=True)
        return [gap] if self._messages.make_instead(work, gap) else []

    def _release(self, stage: StageRule, key: Key, out: list[Instruction]) -> None:
        for index in joins.needs(stage.scope, key, self.num_segments):
            if all(
                output in self._stored[reader.id]
                for reader in self._readers
                for output in joins.outputs_of(reader.scope, index, self.num_segments)
                if reader.running.owes(output)
            ):
                out.append(Release(index))
