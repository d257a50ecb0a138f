"""Good records, entries and words of the wire, to be spoilt: one of each."""

from functools import cache
from typing import Any

import msgspec

from engine.decide.answer import Answer, make_answer, wall_clock
from engine.decide.signals import PoolSignals, ServiceTime, StreamSignals, WorkerSignals
from engine.run.registry import NodeStatus
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Capability, Machine, Media, Operator, Port, Reduce, Rung, Settings
from engine.spec.plan import make_plan
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams.records import (
    DeadLetter,
    EndOfStream,
    Evidence,
    Gap,
    Measured,
    Observation,
    Packet,
    Record,
    Reply,
    Result,
    Segment,
    Support,
    Track,
    encode,
)

KEY = "good"
TRACKS = (
    Track(
        kind="video", codec="h264", time_base=(1, 90000), extradata=b"\x01\x64", width=64, height=48, pix_fmt="yuv420p"
    ),
    Track(kind="audio", codec="aac", time_base=(1, 48000), sample_rate=48000, layout="stereo", sample_fmt="fltp"),
)
PACKETS = (Packet(0, 0, 0, 3000, True, b"\x00\x01" * 9), Packet(1, 5, 4, 1024, True, b"abc", 17))
SEGMENT = Segment(
    stream=KEY,
    index=3,
    start_ns=3 * 10**9,
    duration_ns=10**9,
    tracks=TRACKS,
    packets=PACKETS,
    flaws=("one",),
    captured_ns=1_795_227_772 * 10**9,
)
REPLY = Reply(
    question="q", answer="a", confidence=0.5, evidence=(Support(kind="text", start_ns=1, end_ns=2, text="x"),)
)
SEEN = Evidence(observations=(Observation(start_ns=0, end_ns=10**9, text="seen", confidence=0.9),))
RESULT = Result(
    stage="id",
    stream=KEY,
    first=0,
    last=4,
    output=msgspec.Raw(encode(REPLY)),
    implementation="x",
    measured=Measured(compute_s=0.25, batch_size=2, worker="w", started_ns=10**18),
)
GAP = Gap(stage="id", stream=KEY, first=0, last=4, cause="late", detail="too late")
END = EndOfStream(stream=KEY, num_segments=7, duration_ns=10**10, flaws=("cut off",))
DEAD = DeadLetter(stage="id", stream=KEY, first=1, last=1, cause="it failed", attempts=4)
SERVED = PoolSignals(
    pool="c/i/r",
    runs_in="thread",
    device="cpu",
    max_batch=1,
    num_waiting=0,
    num_in_service=0,
    num_in_flight=0,
    max_in_flight=2,
    num_instances=1,
    queue_wait_s=0.1,
    service_s=0.2,
    service_times=(ServiceTime(batch_size=1, num=3, mean_s=0.1, max_s=0.2, num_within=(1, 2, 3)),),
)
SIGNALS = WorkerSignals(
    worker=KEY,
    node="n",
    at_ns=10**18,
    pools=(SERVED,),
    streams=(StreamSignals(stream=KEY, gaps={"late": 1}, lag_s=0.5),),
)
NODE = NodeStatus(id=KEY, host="h", pid=1, num_cores=2, num_workers=1, serves=("c/i/1/cpu",), rungs=("c/r/cpu",))
STREAM = StreamSpec(name=KEY, policy="live", url="rtsp://user:secret@camera.example:554/path?x=1", declared_ns=10**18)
TRACEPARENT = "00-7d817d93b5b266595274aacb25b6d1d6-e340361a9fd1aaa7-01"
HEADERS = {"traceparent": TRACEPARENT, "Penstock-Due": "1795227772000000000", "Penstock-Offset": "77", "X": "y"}
BLOCK = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items()) + b"\r\n"
ACK = "$JS.ACK.PENSTOCK_MEDIA.consumer.1.22.3.1795227772000000000.5"
STORED = {
    "subject": "penstock.media.good.3",
    "seq": 7,
    "data": "AAEC",
    "hdrs": "TkFUUy8xLjANCg==",
    "time": "2026-11-21T08:00:00.5Z",
}


class Number(Record, frozen=True):
    value: int
    seen: tuple[int, ...] = ()


class _Asked(Settings, frozen=True):
    question: str = ""
    weight: int = 1


class _Reads(Operator):
    capability = Capability("bad_read", {"media": Port(Media)}, Evidence, _Asked)
    name = "bad"

    @classmethod
    def rungs(cls) -> list[Rung]:
        return [Rung("bad", 0.5, Settings())]

    def process(self, batch: Any) -> Any:
        raise NotImplementedError


class _Answers(_Reads):
    capability = Capability("bad_answer", {"evidence": Port(Evidence, many=True)}, Reply, _Asked)
    scope = Reduce()


CATALOGUE = Catalogue([_Reads, _Answers])
WORKFLOW = Workflow(
    name="w",
    stages={
        "read": Stage(capability="bad_read", inputs={"media": "media"}),
        "answer": Stage(capability="bad_answer", inputs={"evidence": ("read",)}, params={"question": "$ask"}),
    },
)


@cache
def good_job() -> JobSpec:
    plan = make_plan(WORKFLOW.for_asks(["Who?"]), CATALOGUE, Machine(num_cores=2))
    asked = Span(first=0, last=9)
    return JobSpec(
        id=KEY,
        stream=KEY,
        plan=plan,
        spans=spans_of(plan, asked),
        asked=asked,
        standing=True,
        asks=("Who?",),
        prompt_from=3,
        max_lag_s=2.5,
        rounds={stage.id: 7 for stage in plan.stages},
        submitted_ns=1_795_227_772 * 10**9,
        detail="none",
        lost=Span(first=0, last=1),
        webhook="https://example.org/answers",
        confined=True,
    )


@cache
def good_open_job() -> JobSpec:
    """The same, asked of the whole stream."""
    job, asked = good_job(), Span(first=0)
    return msgspec.structs.replace(job, asked=asked, spans=spans_of(job.plan, asked), standing=False)


@cache
def good_answer() -> Answer:
    job = good_job()
    record = msgspec.structs.replace(RESULT, stage=job.plan.answers[0])
    return make_answer(job, record, REPLY, {}, ("a flaw",), 0.5, "t" * 32, wall_clock(SEGMENT))
