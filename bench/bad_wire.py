"""Bad records and messages of the wire, thrown at what reads them: the functions that are to be total, and those that
are handed what these let through."""

import io
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple, cast

import bad_making as making
import msgspec
from bad_records import (
    ACK,
    BLOCK,
    CATALOGUE,
    DEAD,
    END,
    GAP,
    KEY,
    NODE,
    REPLY,
    RESULT,
    SEEN,
    SEGMENT,
    SIGNALS,
    STORED,
    STREAM,
    TRACEPARENT,
    Number,
    good_answer,
    good_job,
    good_open_job,
)
from bad_watch import Case, Defect, Outcome, one_line
from rich.console import Console

from engine.decide.answer import Answer, digest, make_answer, wall_clock
from engine.decide.arrears import num_behind
from engine.decide.instructions import StageRule
from engine.decide.joins import needs
from engine.decide.lacking import lacking
from engine.decide.reconcile import reconcile, unserved
from engine.decide.running_graph import RunningStage, running_groups, running_stages
from engine.decide.sharing import lacks
from engine.decide.starting_points import first_lacking, left_of
from engine.node.answering import _progress
from engine.node.intake import _Sender, _spec_of
from engine.node.views import job_view
from engine.node.workers_heard import WorkersHeard
from engine.run.journal import Journal, Recall
from engine.run.registry import _sound_node, _sound_stream
from engine.run.segment_cache import SegmentCache
from engine.spec.entries import sound_job, sound_progress
from engine.spec.jobs import JobProgress, Reached
from engine.spec.operator import Reduce
from penstock.cli.show import show_answer
from penstock.http.metrics import exposition
from streams import subjects
from streams.decoding import decoded, from_json, printable, seconds, shown, whole_number
from streams.errors import Malformed, UserError
from streams.media.pipe import Pipe
from streams.records import (
    EndOfStream,
    Evidence,
    Reply,
    Result,
    Segment,
    decode_dead,
    decode_media,
    decode_output,
    decode_result,
    encode,
)
from streams.wire.client import WatchedClient, header_block, plain_headers
from streams.wire.jetstream import _read_by_leader, headers_of, unix_ns
from streams.wire.ledger import Stored, due_of, traceparent_of
from streams.wire.publisher import decode_ack
from streams.wire.pull import delivery


class Target(NamedTuple):
    weight: int
    make: Callable[[Random], bytes]
    throw: Callable[[bytes], Any]  # raises Malformed or UserError where it refuses


class Drawn:
    """Cases of targets, each drawn by its weight and spoilt by chance, which follows from the seed and an index."""

    name: str
    targets: Mapping[str, Target]
    max_s = 5.0
    batch = 1 << 40

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._names = [name for name, target in self.targets.items() for _ in range(target.weight)]

    def case(self, index: int) -> Case:
        chance = Random(f"{self._seed} {self.name} {index}")
        target = chance.choice(self._names)
        return Case(target, self.targets[target].make(chance))


# --- what is handed on -------------------------------------------------------------------------------------------


def _media(data: bytes) -> None:
    """As a node that answers reads a segment, to tell the time of day."""
    record = decode_media(data)
    if isinstance(record, Segment) and (clock := wall_clock(record)) is not None:
        clock(record.start_ns)


def _result(data: bytes) -> None:
    """As a node reads what a last stage stored, and makes an answer of it."""
    record = decode_result(data)
    job = good_job()
    id = job.plan.answers[0]
    output = decode_output(msgspec.msgpack.Decoder(Reply), record) if isinstance(record, Result) else None
    needs(job.plan.stage(id).scope, subjects.Key(record.first, record.first), None)
    digest(output)
    msgspec.json.encode(make_answer(job, msgspec.structs.replace(record, stage=id), output, {}, (), 0.1, "", None))


def _output(data: bytes) -> None:
    for kind in (Reply, Evidence, Number):
        record = msgspec.structs.replace(RESULT, output=msgspec.Raw(data))
        digest(cast(Any, decode_output(msgspec.msgpack.Decoder(cast(Any, kind)), record)))


def _cached(data: bytes) -> None:
    """As a worker takes in what it reads."""
    cache = SegmentCache(cast(Any, None), KEY)
    cache.serve({"id": Reply})
    stored = Stored("penstock.media.good.3", 1, data)
    found = [
        cache.keep_media(3, stored),
        cache.keep_media(None, stored),
        cache.keep_result("id", subjects.Key(0, 4), stored),
    ]
    for known in found:
        if known is not None and known.gap is not None and known.gap.detail.startswith("the stored record"):
            one_line(known.gap.detail or "-")


def _job(data: bytes) -> None:
    """As nodes and workers use an entry that they call sound."""
    job = sound_job(KEY, data)
    msgspec.json.encode(job_view(job, [NODE]))
    unserved(job, [frozenset(NODE.serves)])
    for group in running_groups([job, good_job()]):
        assert group.name
        for stage in group.stages:
            stage.owes(subjects.Key.of(3))
            _read_ranges(stage, None)
    reconcile([job, good_job()], [], CATALOGUE, frozenset({"bad_read/bad/1/cpu", "bad_answer/bad/1/cpu"}))
    msgspec.json.encode(job.ended("failed", "x"))


def _progress_of_a_job(data: bytes) -> None:
    job = good_open_job()
    left_of([job], {job.id: msgspec.structs.replace(sound_progress(data), submitted_ns=job.submitted_ns)})


def _ranges(data: bytes) -> None:
    """As nodes and workers take the end of a stream: what is to be looked at follows from how long it says it is."""
    record = decode_media(data)
    if not isinstance(record, EndOfStream):
        raise Malformed("it is no end")
    job = good_open_job()
    for stage in job.plan.stages:
        lacks(job.spans[stage.id], set(), record.num_segments, reduces=isinstance(stage.scope, Reduce))
    for running in running_stages([job]):
        first_lacking(StageRule(running, frozenset(), False), running.spans, set(), record.num_segments)
        num_behind([running], {}, record.num_segments)
        _read_ranges(running, record.num_segments)
    last = subjects.Key(0, max(0, record.num_segments - 1))
    lacking(job.plan.stages, job.plan.answers[0], last, {}, {0}, record.num_segments)


class _Empty:
    """A ledger that holds nothing."""

    async def get_many(self, names: Any) -> dict[str, Any]:
        return {}

    async def subjects(self, pattern: str) -> set[str]:
        return set()


def _read_ranges(stage: RunningStage, num_segments: int | None) -> None:
    """As a worker reads what a stage that reduces is asked for."""
    if not isinstance(stage.planned.scope, Reduce):
        return
    cache = SegmentCache(cast(Any, _Empty()), KEY)
    for span in stage.spans:
        last = span.last if span.last is not None else (num_segments or 1) - 1
        _driven(cache.get("id", needs(stage.planned.scope, subjects.Key(span.first, last), num_segments)))


def _signals(data: bytes) -> None:
    """As a node hears a worker and shows what it said."""
    heard = WorkersHeard(cast(Any, None))
    heard.hear(KEY, data)
    if not heard.now:
        raise Malformed("it was passed over")
    msgspec.json.encode(heard.now)
    exposition(heard.now)


def _answer(data: bytes) -> None:
    """As the command line shows what somebody published as an answer."""
    answer = from_json(data, Answer)
    show_answer(Console(file=io.StringIO(), width=200), answer)


def _recall(data: bytes) -> None:
    journal = Journal("w")
    journal.note(KEY, "0-4", "stage", "what", "why")
    asked = from_json(data, Recall)
    journal.told(asked.stream, asked.segment)


def _reached(data: bytes) -> None:
    said = decoded(_progress, data)
    assert all(isinstance(each, Reached) for each in said.values())


def _by_leader(data: bytes) -> None:
    _read_by_leader(from_json(data, dict[str, Any]).get("message"))


def _ack(data: bytes) -> None:
    decode_ack(data)


# --- words -------------------------------------------------------------------------------------------------------


def _words(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _subject(data: bytes) -> None:
    said = _words(data)
    subjects.keys_of([said])
    tail = said.rpartition(".")[2]
    for parse in (subjects.parse_key, subjects.token):
        try:
            parse(tail)
        except UserError as error:
            one_line(error)
    subjects.parse(said)


def _number(data: bytes) -> None:
    said = _words(data)
    one_line(shown(said))
    if len(printable(said).splitlines()) > 1:
        raise Defect("message", f"printable({said!r}) has lines", "decoding.py printable")
    due_of({"Penstock-Due": said})
    if (given := traceparent_of({"traceparent": said})) and given != said:
        raise Defect("message", f"{given!r} was made of {said!r}", "ledger.py traceparent_of")
    for read in (seconds, unix_ns):
        try:
            cast(Any, read)(said)
        except Malformed as error:
            one_line(error)
    whole_number(said)


def _delivery(data: bytes) -> None:
    delivery(_words(data))


def _headers(data: bytes) -> None:
    """A block of headers as the client reads it, and what the intake makes of it."""
    list(headers_of(data))
    said = plain_headers(data)
    if said is None:
        said = _driven(WatchedClient()._process_headers(data))
    if said:
        traceparent_of(said)
        due_of(said)
        header_block({name: value for name, value in said.items() if isinstance(value, str)})
    spec = _spec_of(KEY, said or {})
    message = type("Message", (), {"data": b"abc", "headers": said})
    sender = _Sender(Pipe("x"), spec)
    sender.due_part(message)
    sender.due_part(message)


def _ingested(data: bytes) -> None:
    """The headers of a first piece."""
    said = {name: _words(value) for name, _, value in (line.partition(b": ") for line in data.split(b"\n"))}
    _spec_of(KEY, cast(Any, said))


def _driven(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")


# --- all of them -------------------------------------------------------------------------------------------------


def _packed(*good: Any) -> Callable[[Random], bytes]:
    trees = [msgspec.msgpack.decode(encode(each)) for each in good]
    return lambda chance: making.as_msgpack(chance, chance.choice(trees))


def _json(good: Callable[[], Any]) -> Callable[[Random], bytes]:
    return lambda chance: making.as_json(chance, msgspec.json.decode(msgspec.json.encode(good())))


def _text(*good: str) -> Callable[[Random], bytes]:
    def make(chance: Random) -> bytes:
        if chance.random() < 0.3:
            return making.data(chance, chance.choice(good).encode())
        return making.text(chance, chance.choice(good)).encode("utf-8", "surrogatepass")

    return make


LENGTHS = [each for each in making.NUMBERS if isinstance(each, int) and -(2**63) <= each < 2**63]


def _long(chance: Random) -> bytes:
    """An end, mostly of a stream that says it is of another length."""
    tree = msgspec.msgpack.decode(encode(END))
    if chance.random() < 0.5:
        tree["num_segments"] = chance.choice(
            [each for each in making.NUMBERS if isinstance(each, int) and abs(each) < 2**63]
        )
        return msgspec.msgpack.encode(tree)
    return making.as_msgpack(chance, tree)


def _piece(chance: Random) -> bytes:
    given = {"Penstock-Policy": "live", "Penstock-Segment": "2.5s", "Penstock-Max-Lag": "10"}
    given[chance.choice(list(given))] = making.text(chance, "2.5")
    return "\n".join(f"{name}: {value}" for name, value in given.items()).encode("utf-8", "surrogatepass")


TARGETS: dict[str, Target] = {
    "media": Target(10, _packed(SEGMENT, SEGMENT, END, GAP), _media),
    "ranges": Target(2, _long, _ranges),
    "result": Target(10, _packed(RESULT, GAP), _result),
    "dead": Target(3, _packed(DEAD), decode_dead),
    "output": Target(5, _packed(REPLY, SEEN, Number(value=3, seen=(1, 2))), _output),
    "cached": Target(6, _packed(SEGMENT, END, GAP, RESULT), _cached),
    "job": Target(16, _json(good_job), _job),
    "stream": Target(6, _json(lambda: STREAM), lambda data: _sound_stream(KEY, data)),
    "node": Target(3, _json(lambda: NODE), lambda data: _sound_node(KEY, data)),
    "signals": Target(6, _json(lambda: SIGNALS), _signals),
    "answer": Target(6, _json(good_answer), _answer),
    "recall": Target(2, _json(lambda: Recall(stream=KEY, segment=3)), _recall),
    "progress": Target(3, _json(lambda: {"id": Reached(4, "said")}), _reached),
    "job's progress": Target(
        2, _json(lambda: JobProgress(submitted_ns=5, reached={"id": Reached(4, "said")})), _progress_of_a_job
    ),
    "by_leader": Target(3, _json(lambda: {"message": STORED}), _by_leader),
    "ack": Target(2, _json(lambda: {"stream": "S", "seq": 4, "error": {"code": 400, "err_code": 1}}), _ack),
    "subject": Target(
        6, _text("penstock.media.good.3", "penstock.results.id.good.0-4", "penstock.media.good.end"), _subject
    ),
    "number": Target(
        6, _text("1795227772000000000", "2.5s", "7", "0-4", "2026-11-21T08:00:00.5Z", TRACEPARENT), _number
    ),
    "delivery": Target(3, _text(ACK), _delivery),
    "headers": Target(6, lambda chance: making.data(chance, BLOCK, BLOCK), _headers),
    "ingested": Target(3, _piece, _ingested),
}


class Wire(Drawn):
    """Records and messages."""

    name = "wire"
    targets = TARGETS

    def open(self) -> None:
        import structlog

        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

    def throw(self, case: Case) -> Outcome:
        try:
            TARGETS[case.target].throw(case.data)
        except (Malformed, UserError) as error:
            one_line(error)
            return "refused"
        return "accepted"

    def check(self) -> None: ...

    def close(self) -> None: ...
