"""Bad messages over NATS, thrown at a real node by a client that writes the protocol itself, for no library would:
requests, pieces of media, records and entries where only nodes should write, and headers that are none."""

import time
from random import Random
from typing import Any

import bad_making as making
import msgspec
from bad_media import spoilt
from bad_nats_client import Client, Message
from bad_node import ANSWER_S, GOOD, Node
from bad_records import DEAD, END, GAP, HEADERS, NODE, RESULT, SEGMENT, SIGNALS
from bad_watch import Case, Defect, Outcome, Ruined
from bad_wire import LENGTHS

from engine.run.journal import STORY, Recall
from engine.spec.catalogue import installed
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Machine
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams.records import encode

SPOILT, WATCH = "spoilt", "watch"  # a live stream, and a standing job on it: what is stored there is worked on
WORKFLOW = Workflow(
    name="watch",
    stages={
        "scenes": Stage(capability="detect_scenes", inputs={"media": "media"}),
        "answer": Stage(capability="answer_question", inputs={"evidence": ("scenes",)}, params={"question": "Who?"}),
    },
)
REQUESTS: dict[str, Any] = {
    "penstock.jobs.submit": {
        "stream": GOOD,
        "workflow": msgspec.to_builtins(WORKFLOW),
        "start": "0:00",
        "end": "now",
        "id": "",
    },
    "penstock.jobs.list": {"stream": GOOD, "state": "done"},
    "penstock.jobs.show": {"job": WATCH},
    "penstock.jobs.cancel": {"job": "j1"},
    "penstock.streams.list": {"stream": GOOD},
    "penstock.streams.declare": {
        "name": "s1",
        "policy": "live",
        "segment_s": 5.0,
        "gop_s": 2.0,
        "url": "rtsp://192.0.2.1/x",
    },
    "penstock.streams.forget": {"stream": "s1"},
    "penstock.nodes.list": {},
    f"penstock.ask.{GOOD}": {"question": "Who?", "start": "0:00", "end": "now", "timeout_s": 1.0},
    "penstock.operators.detect_scenes": {"stream": GOOD, "params": {}, "start": "0:00", "timeout_s": 1.0},
    STORY: msgspec.to_builtins(Recall(stream=SPOILT, segment=3)),
    "$SRV.PING.penstock": {},
    "$SRV.STATS.penstock": {},
}
MAY_WAIT = (b"penstock.ask.", b"penstock.operators.", STORY.encode())  # as long as is said, or nobody says anything
WAIT_S = 0.5  # for these
BLOCKS = (
    *(
        b"NATS/1.0\r\n\r\n",
        b"\0\0\r\n\r\n",
        b"NATS/1.0\r\nX\r\n\r\n",
        b"NATS/1.0\r\n: \r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
    ),
    *(
        b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
        b"NATS/1.0 408 Request Timeout\r\n\r\n",
        b"NATS/9.9\r\nA: b\r\n\r\n",
        b"\r\n\r\n",
    ),
    *(
        b"NATS/1.0\r\n\xff\xfe: \xff\r\n\r\n",
        b"NATS/1.0\r\nA: b\r\nA: c\r\n\r\n",
        b"NATS/1.0\r\nA:\r\n b\r\n\r\n",
        b"x" * 5000,
    ),
    *(
        b"NATS/1.0\r\nNats-Sequence: x\r\n\r\n",
        b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n",
        b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
    ),
    b"NATS/1.0\r\nPenstock-Bulk: " + b"0" * 40 + b".999999999\r\n\r\n",
    b"NATS/1.0\r\nPenstock-Progress: {\r\n\r\n",
)
SPOILABLE = {
    **HEADERS,
    "Penstock-Policy": "live",
    "Penstock-Segment": "2.5",
    "Penstock-Max-Lag": "10",
    "Penstock-Bulk": "0" * 40 + ".2",
    "Penstock-Progress": '{"id":[4,"said"]}',
}


TARGETS = {"request": 6, "ingest": 4, "record": 4, "entry": 4, "said": 2, "asked_of": 1}


class Nats:
    """Messages. An input is those that are sent, one after the other."""

    name = "nats"
    max_s = 150.0  # a node has to come up; each answer is waited for ANSWER_S
    batch = 100

    def __init__(self, seed: int, clips: dict[str, bytes], clip: bytes) -> None:
        self._seed = seed
        self._clips = clips
        self._clip = clip
        self._node: Node | None = None
        self._client: Client | None = None
        self._entries: set[bytes] = set()  # of buckets, which were written

    def case(self, index: int) -> Case:
        chance = Random(f"{self._seed} nats {index}")
        target = chance.choice([name for name, weight in TARGETS.items() for _ in range(weight)])
        return Case(target, msgspec.msgpack.encode(getattr(self, f"_{target}")(chance, index)))

    def open(self) -> None:
        self._node = Node(self._clip)
        put = self._node.http.put(f"/v1/streams/{SPOILT}", json={"policy": "live", "max_lag_s": 3600.0})
        request = {"stream": SPOILT, "id": WATCH, "standing": True, "workflow": msgspec.to_builtins(WORKFLOW)}
        posted = self._node.http.post("/v1/jobs", json=request)
        if (put.status_code, posted.status_code) != (200, 201):
            raise RuntimeError(f"{put.text} {posted.text}")
        self._client = Client(self._node.nats)
        for word in ("penstock.streams.list", "$SRV.PING.penstock"):
            self._client.send(Message(word.encode(), b"", b"{}", True))
            if self._client.answer(time.monotonic() + ANSWER_S) is None:
                raise RuntimeError(f"{word} is not answered")

    def throw(self, case: Case) -> Outcome:
        assert self._client is not None
        outcome: Outcome = "accepted"
        for message in msgspec.msgpack.decode(case.data, type=list[Message]):
            if message.subject.startswith(b"$KV."):
                self._entries.add(message.subject)
            try:
                self._client.send(message)
                wait_s = WAIT_S if message.subject.startswith(MAY_WAIT) else ANSWER_S
                answer = self._client.answer(time.monotonic() + wait_s) if message.asks else None
            except ConnectionError:  # the server would not have it
                assert self._node is not None
                self._client = Client(self._node.nats)
                return "refused"
            if message.asks and answer is None and wait_s == ANSWER_S:
                raise Ruined("hang", f"{message.subject!r} was not answered within {ANSWER_S:g} s")
            if answer is not None and _code(answer) in ("500", "413"):
                raise Defect("status", f"{message.subject!r}: {answer[0][:300]!r}; {self._complaint()}")
            if answer is not None and (b"Nats-Service-Error" in answer[0] or b"NATS/1.0 503" in answer[0]):
                outcome = "refused"
        if complaint := self._complaint():
            raise Defect("exception", f"the log: {complaint}")
        return outcome

    def check(self) -> None:
        assert self._node is not None and self._client is not None
        time.sleep(0.3)  # what was only published has come
        try:
            self._node.check()
        finally:
            for entry in self._entries:
                self._client.send(Message(entry, b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", b"", False))
            self._entries.clear()
        self._node.tidy(keep=(GOOD, SPOILT, WATCH))

    def close(self) -> None:
        if self._node is not None:
            self._node.close()

    def _complaint(self) -> str:
        assert self._node is not None
        return self._node.complaint()

    # --- making them ---------------------------------------------------------------------------------------------

    def _request(self, chance: Random, index: int) -> list[Message]:
        subject = chance.choice(list(REQUESTS))
        data = making.as_json(chance, REQUESTS[subject])
        if subject.startswith(("penstock.ask", "penstock.operators")) and chance.random() < 0.3:
            subject = f"{subject.rpartition('.')[0]}.{_token(chance, GOOD)}"
        return [Message(subject.encode("utf-8", "replace"), _block(chance, 0.2), data, True)]

    def _ingest(self, chance: Random, index: int) -> list[Message]:
        """Media in pieces, to a stream of its own; now and then its end is told, or a piece is left out."""
        name = f"i{index}" if chance.random() < 0.9 else _token(chance, "i")
        subject = f"penstock.ingest.{name}".encode("utf-8", "replace")
        good = chance.choice(list(self._clips.values()))[:200_000]
        data = chance.choice((good, spoilt(chance, good, self._clip), chance.choice(making.BYTES)))
        size = max(1, chance.choice((len(data), len(data) // 3, 4096)))
        pieces = [data[at : at + size] for at in range(0, len(data), size)][:8]
        if len(pieces) > 2 and chance.random() < 0.2:
            del pieces[chance.randrange(len(pieces))]
        ends = [b""] if chance.random() < 0.9 else []
        return [Message(subject, _block(chance, 0.3), piece, True) for piece in (*pieces, *ends)]

    def _record(self, chance: Random, index: int) -> list[Message]:
        """A record where only nodes should write."""
        job = _job()
        place = chance.choice(
            (str(index), str(index), "end", f"{index}-{index + 3}", "0", "9" * 18, _token(chance, "3"))
        )
        stage = chance.choice((*job.plan.answers, job.plan.stages[0].id, _token(chance, "stage")))
        good, subject = chance.choice(
            (
                (SEGMENT, f"penstock.media.{SPOILT}.{place}"),
                (SEGMENT, f"penstock.media.{SPOILT}.{index}"),
                (END, f"penstock.media.{_token(chance, 'other')}.end"),
                (GAP, f"penstock.media.{SPOILT}.{place}"),
                (RESULT, f"penstock.results.{stage}.{SPOILT}.{place}"),
                (GAP, f"penstock.results.{stage}.{SPOILT}.{place}"),
                (DEAD, f"penstock.dead.{stage}.{SPOILT}.{place}"),
                (GAP, f"penstock.gaps.late.{stage}.{SPOILT}.{place}"),
                (SEGMENT, f"penstock.answers.{WATCH}.{SPOILT}"),
                (SEGMENT, f"penstock.partials.{WATCH}.{SPOILT}"),
                (SEGMENT, "penstock.bulk." + "0" * 40 + f".{index}"),
            )
        )
        tree = msgspec.msgpack.decode(encode(good))
        tree.update({"stream": SPOILT, **({"index": index} if "index" in tree else {})})
        if place.isdigit() and "first" in tree:
            tree.update({"stage": stage, "first": index, "last": index})
        data = making.as_msgpack(chance, tree) if chance.random() < 0.9 else msgspec.msgpack.encode(tree)
        return [Message(subject.encode("utf-8", "replace"), _block(chance, 0.2), data, False)]

    def _asked_of(self, chance: Random, index: int) -> list[Message]:
        """A job about a stream whose end is wrong, or that has a segment far behind the others."""
        name = f"a{index}"
        first = msgspec.structs.replace(SEGMENT, stream=name, index=0, start_ns=0)
        far = chance.choice(LENGTHS)
        request: dict[str, Any] = {"stream": name, "workflow": msgspec.to_builtins(WORKFLOW)}
        if chance.random() < 0.5 and far > 0:
            last, place = encode(msgspec.structs.replace(first, index=far)), str(far)
            request |= {"start": "0:00", "end": "now"}
        else:
            last, place = encode(msgspec.structs.replace(END, stream=name, num_segments=far)), "end"
        return [
            Message(f"penstock.media.{name}.0".encode(), b"", encode(first), True),
            Message(f"penstock.media.{name}.{place}".encode(), b"", last, True),
            Message(b"penstock.jobs.submit", b"", making.written(request), True),
        ]

    def _entry(self, chance: Random, index: int) -> list[Message]:
        """An entry of a bucket."""
        key = chance.choice((f"e{index}", f"e{index}", f"e{index}.x", "=", _token(chance, "e")))
        stream = StreamSpec(name=key, policy="live", url="rtsp://192.0.2.1/x")
        bucket, good = chance.choice(
            (
                ("jobs", msgspec.structs.replace(_job(), id=key)),
                ("jobs", msgspec.structs.replace(_job(), id=key, standing=True, asked=Span(first=0))),
                ("streams", stream),
                ("nodes", msgspec.structs.replace(NODE, id=key)),
                ("leases", {"any": "thing"}),
            )
        )
        data = making.as_json(chance, msgspec.to_builtins(good))
        return [Message(f"$KV.penstock_{bucket}.{key}".encode("utf-8", "replace"), _block(chance, 0.1), data, False)]

    def _said(self, chance: Random, index: int) -> list[Message]:
        """What workers say of themselves, and what is whispered."""
        subject = chance.choice(
            (f"penstock.signals.w{index % 7}", f"penstock.signals.{_token(chance, 'w')}", "penstock.progress.x")
        )
        good = msgspec.to_builtins(msgspec.structs.replace(SIGNALS, worker=subject.rpartition(".")[2]))
        return [Message(subject.encode("utf-8", "replace"), _block(chance, 0.2), making.as_json(chance, good), False)]


def _job() -> JobSpec:
    if not _JOBS:
        plan = make_plan(WORKFLOW, installed(), Machine(num_cores=2))
        asked = Span(first=0, last=9)
        spans = spans_of(plan, asked)
        rounds = {stage.id: 7 for stage in plan.stages}
        submitted_ns = 1_795_227_772 * 10**9
        _JOBS.append(
            JobSpec(
                id="e", stream=SPOILT, plan=plan, spans=spans, asked=asked, rounds=rounds, submitted_ns=submitted_ns
            )
        )
    return _JOBS[0]


_JOBS: list[JobSpec] = []


def _token(chance: Random, good: str) -> str:
    """A part of a subject that the server takes: no space, no wildcard, no control character."""
    said = making.text(chance, good).encode("utf-8", "replace").decode()
    return "".join(c for c in said if c.isprintable() and c not in " *>")[:500].strip(".").replace("..", "") or "x"


def _block(chance: Random, share: float) -> bytes:
    """A block of headers, with that chance."""
    if chance.random() > share:
        return b""
    if chance.random() < 0.4:
        return chance.choice(BLOCKS)
    name = chance.choice(list(SPOILABLE))
    said = making.text(chance, SPOILABLE[name])[:2000].encode("utf-8", "surrogatepass")
    block = b"NATS/1.0\r\n" + name.encode() + b": " + said.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n\r\n"
    return making.data(chance, block) if chance.random() < 0.3 else block


def _code(answer: tuple[bytes, bytes]) -> str:
    for line in answer[0].split(b"\r\n"):
        if line.startswith(b"Nats-Service-Error-Code: "):
            return line[25:].decode(errors="replace")
    return ""
