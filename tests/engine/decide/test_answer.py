"""Answers: what they rest on, what they lacked, what they cost."""

from typing import Any

import msgspec
import toys

from engine.decide.answer import EvidenceItem, GapNote, StageNote, make_answer, upstream_of
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import Stage, Workflow
from streams.records import Gap, Measured, Reply, Result, Support, encode

PLAN: Plan = make_plan(
    Workflow(
        name="w",
        stages={
            "read": Stage(capability="toy_read", inputs={"media": "media"}),
            "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
            "aside": Stage(capability="toy_add", inputs={"numbers": "read"}, params={"add": 9}),
            "total": Stage(capability="toy_total", inputs={"numbers": ("add", "read")}),
        },
    ),
    Catalogue(toys.ALL),
    Machine(num_cores=1),
)
SPEC = JobSpec(id="job", stream="s", plan=PLAN, spans=spans_of(PLAN, Span(first=0)))
IDS = {stage.name: stage.id for stage in PLAN.stages}
REPLY = Reply(
    question="how many?",
    answer="three",
    confidence=0.75,
    evidence=(Support(kind="speech", start_ns=1_234_567_890, end_ns=2 * 10**9, text="there are three"),),
)


def result(stage: str, output: msgspec.Struct, compute_s: float | None, first: int = 0, last: int = 0) -> Result:
    measured = None if compute_s is None else Measured(compute_s=compute_s)
    raw = msgspec.Raw(encode(output))
    return Result(stage=IDS[stage], stream="s", first=first, last=last, output=raw, measured=measured)


def answered(record: Result | Gap, output: msgspec.Struct | None, used: dict[str, list[Result | Gap]]) -> Any:
    """The answer as a user gets it: from its JSON."""
    return msgspec.json.decode(msgspec.json.encode(make_answer(SPEC, record, output, used, (), 1.23456, "ab" * 16)))


def test_a_stage_rests_on_all_it_was_made_from_and_no_more() -> None:
    assert upstream_of(PLAN, IDS["total"]) == [IDS["read"], IDS["add"], IDS["total"]]
    assert upstream_of(PLAN, IDS["aside"]) == [IDS["read"], IDS["aside"]]
    assert upstream_of(PLAN, IDS["read"]) == [IDS["read"]]


def test_an_answer_says_what_it_rests_on_lacked_and_cost() -> None:
    gap = Gap(stage=IDS["add"], stream="s", first=1, last=1, cause="dead_lettered", detail="unlucky")
    lost = Gap(stage="media", stream="s", first=2, last=2, cause="source_lost")
    used: dict[str, list[Result | Gap]] = {
        IDS["read"]: [
            result("read", toys.Number(value=1), 0.25),
            result("read", toys.Number(value=2), None, 1, 1),
            lost,
        ],
        IDS["add"]: [result("add", toys.Number(value=1), 0.5), gap],
    }
    flaws = ["a packet is missing"]
    answer = make_answer(SPEC, result("total", REPLY, 2.0, 0, 2), REPLY, used, flaws, 1.23456, "ab" * 16)
    assert (answer.job, answer.stream, answer.trace_id) == ("job", "s", "ab" * 16)
    assert (answer.question, answer.answer, answer.confidence) == ("how many?", "three", 0.75)
    assert answer.evidence == (EvidenceItem(kind="speech", start_s=1.235, end_s=2.0, text="there are three"),)
    assert answer.stages == tuple(
        StageNote(stage=name, capability=f"toy_{name}", implementation=f"toy_{name}-toy")
        for name in ("read", "add", "total")
    )
    assert set(answer.gaps) == {
        GapNote(stage="add", first=1, last=1, cause="dead_lettered", detail="unlucky"),
        GapNote(stage="media", first=2, last=2, cause="source_lost"),
        GapNote(stage="media", first=2, last=2, cause="source_lost", detail="a packet is missing"),
    }
    assert answer.latency_s == 1.2346
    assert answer.compute_s == 2.75
    assert answer.output is None


def test_a_last_stage_that_answers_no_question_gives_what_it_found() -> None:
    number = toys.Number(value=7, seen=(0, 1))
    answer = answered(result("total", number, 0.1), number, {})
    assert answer["output"] == {"value": 7, "seen": [0, 1]}
    assert (answer["question"], answer["answer"], answer["evidence"]) == ("", "", [])


def test_a_gap_instead_of_an_answer_says_why() -> None:
    gap = Gap(stage=IDS["total"], stream="s", first=0, last=2, cause="dead_lettered", detail="out of memory")
    answer = answered(gap, None, {})
    assert answer["gaps"] == [
        {"stage": "total", "first": 0, "last": 2, "cause": "dead_lettered", "detail": "out of memory"}
    ]
    assert (answer["answer"], answer["confidence"], answer["output"]) == ("", 0.0, None)
    assert set(answer) >= {
        "job",
        "stream",
        "question",
        "answer",
        "confidence",
        "evidence",
        "stages",
        "gaps",
        "trace_id",
    }
