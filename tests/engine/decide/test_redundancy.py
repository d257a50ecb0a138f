"""The redundancy report: what is computed twice, what a merge would save, and that the merge then does save it."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import msgspec
import pytest
import toys
from hypothesis import example, given
from hypothesis import strategies as st

from engine.decide.redundancy.findings import Cost, Redundancy
from engine.decide.redundancy.merging import normalised
from engine.decide.redundancy.report import find_redundancy, same_place
from engine.decide.running_graph import in_order, running_stages
from engine.node.costs import measured_costs
from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Capability, Machine, Media, Port, Reduce, Rung, Scope, Settings, Window
from engine.spec.plan import Plan, PlannedStage, make_plan, stage_id
from engine.spec.stream import StreamSpec
from engine.spec.workflow import Stage, Workflow
from streams import subjects
from streams.records import Gap, Measured, Result, encode
from streams.subjects import Key
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import connect

# --- operators to plan with --------------------------------------------------------------------------------------


class Heard(Settings, frozen=True):
    language: str = "en"
    add: int = 0


class Asked(Settings, frozen=True):
    question: str
    hints: tuple[str, ...] = ()


class Size(Settings, frozen=True):
    size: int = 2


HEAR = Capability("hear", {"media": Port(Media)}, toys.Number, Heard)
REPLY = Capability("reply", {"numbers": Port(toys.Number, many=True)}, toys.Number, Asked)
QUALITY = {1: 0.3, 2: 0.6, 3: 0.6}


class Ears(toys.Toy):
    """Hears in sizes of different quality, two of them as good as each other."""

    capability = HEAR
    name = "ears"
    Knobs = Size
    offers: ClassVar[tuple[int, ...]] = (1, 2, 3)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(f"ears-{size}", QUALITY[size], Size(size=size)) for size in cls.offers]


class Reply(toys.Toy):
    """Answers over a range; over a window where there is no end."""

    capability = REPLY
    scope: ClassVar[Scope] = Reduce()
    Knobs = Size
    offers: ClassVar[tuple[int, ...]] = (1, 2)

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung(f"reply-{size}", QUALITY[size], Size(size=size)) for size in cls.offers]


CATALOGUE = Catalogue([*toys.ALL, Ears, Reply])


def offering(ears: int, reply: int) -> Catalogue:
    """What a machine offers that can run but one size of each."""
    one_size = type("OneSize", (Ears,), {"offers": (ears,)})
    one_reply = type("OneReply", (Reply,), {"offers": (reply,)})
    return Catalogue([*toys.ALL, one_size, one_reply])


def hear(**params: Any) -> Stage:
    return Stage(capability="hear", inputs={"media": "media"}, params=params)


def add(source: str, **params: Any) -> Stage:
    return Stage(capability="toy_add", inputs={"numbers": source}, params=params)


def reply(question: str, *sources: str, **params: Any) -> Stage:
    return Stage(capability="reply", inputs={"numbers": sources}, params={"question": question, **params})


def job(
    id: str,
    stages: dict[str, Stage],
    first: int = 0,
    last: int | None = None,
    *,
    ears: int = 2,
    replies: int = 2,
    window: int | None = 4,
    **more: Any,
) -> JobSpec:
    workflow = Workflow(name="w", stages=stages)
    plan = make_plan(workflow, offering(ears, replies), Machine(num_cores=2), window=window)
    spans = spans_of(plan, Span(first=first, last=last))
    return JobSpec(**({"id": id, "stream": "cam", "plan": plan, "spans": spans, "standing": last is None} | more))


def asks(question: str, **params: Any) -> dict[str, Stage]:
    return {"speech": hear(), "answer": reply(question, "speech", **params)}


PRICES = {"hear": 10.0, "toy_add": 1.0, "reply": 2.0}


def price(planned: PlannedStage) -> float:
    """What a stage costs by what it does: the larger the rung and the window, the dearer."""
    size = planned.rung.knobs.get("size", 1)
    window = planned.scope.size if isinstance(planned.scope, Window) else 0
    return PRICES[planned.capability] * size + window


def costs_of(jobs: Sequence[JobSpec]) -> dict[str, Cost]:
    return {p.id: Cost(compute_s_per_s=price(p)) for job in jobs for p in job.plan.stages}


def report(*jobs: JobSpec, streams: Mapping[str, StreamSpec] | None = None) -> list[Redundancy]:
    return find_redundancy(jobs, streams or {}, CATALOGUE, costs_of(jobs))


def only(*jobs: JobSpec, **more: Any) -> Redundancy:
    (found,) = report(*jobs, **more)
    return found


def id_of(spec: JobSpec, name: str) -> str:
    return next(stage.id for stage in spec.plan.stages if stage.name == name)


# --- each kind ---------------------------------------------------------------------------------------------------


def test_questions_that_differ_in_wording_only_are_named_with_their_jobs_and_what_one_saves() -> None:
    one, two = job("one", asks("Where can I park?")), job("two", asks("where can I  park"), submitted_ns=1)
    found = only(one, two)
    assert (found.kind, found.outputs, found.streams) == ("same-but-for-wording", "other wording", ("cam",))
    assert found.keep == id_of(one, "answer")
    assert [(use.id, use.name, use.capability, use.implementation, use.jobs) for use in found.stages] == [
        (id_of(one, "answer"), "answer", "reply", "reply-2", ("one",)),
        (id_of(two, "answer"), "answer", "reply", "reply-2", ("two",)),
    ]
    assert found.saves_compute_s_per_s == price(two.plan.stages[1]) == 8.0
    assert found.is_measured
    assert found.why == (
        'answer: "Where can I park?" (one), "where can I  park" (two) differ in the wording of \'question\' only: '
        "let two ask as one"
    )


def test_the_wording_most_jobs_use_is_kept() -> None:
    jobs = [job("a", asks("Where?")), job("b", asks("where"), submitted_ns=1), job("c", asks("where"), submitted_ns=2)]
    found = only(*jobs)
    assert found.keep == id_of(jobs[1], "answer")
    assert [use.jobs for use in found.stages] == [("b", "c"), ("a",)]


def test_many_wordings_are_one_finding() -> None:
    found = only(*(job(f"j{n}", asks(text), submitted_ns=n) for n, text in enumerate(["Who?", "who", "WHO!", " who "])))
    assert len(found.stages) == 4
    assert found.saves_compute_s_per_s == 3 * 8.0
    assert found.why.endswith("let j1 and j2 and j3 ask as j0")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"question": "Who?", "hints": ("Red",)}, {"question": "Who?", "hints": ("red ",)}),
        ({"question": "ＷＨＯ？"}, {"question": "who"}),
        ({"question": "Straße"}, {"question": "STRASSE."}),
        ({"question": "𝐖ho"}, {"question": "who"}),
    ],
)
def test_wordings_are_found_in_any_parameter(one: dict[str, Any], other: dict[str, Any]) -> None:
    plans = [
        {"speech": hear(), "answer": Stage(capability="reply", inputs={"numbers": "speech"}, params=params)}
        for params in (one, other)
    ]
    assert only(job("one", plans[0]), job("two", plans[1])).kind == "same-but-for-wording"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asks("Who is there?"), asks("What is there?")),
        (asks("Who?", hints=("a", "b")), asks("Who?", hints=("b", "a"))),
        (asks("1.5"), asks("15")),
        (asks("?"), asks("!")),
        (asks("Who?"), {"speech": hear(add=1), "answer": reply("Who?", "speech")}),
    ],
)
def test_what_asks_something_else_is_not_redundant(one: dict[str, Stage], other: dict[str, Stage]) -> None:
    assert report(job("one", one), job("two", other)) == []


def test_a_parameter_at_its_default_is_the_same_stage_already() -> None:
    one = job("one", {"speech": hear()})
    two = job("two", {"spoken": hear(language="en", add=0)})
    assert one.plan.stages[0].id == two.plan.stages[0].id
    assert report(one, two) == []


@pytest.mark.parametrize(("ears", "kept", "outputs"), [((1, 2), 2, "better rung"), ((3, 2), 2, "other rung")])
def test_the_better_rung_is_kept_and_of_equals_the_cheaper(ears: tuple[int, int], kept: int, outputs: str) -> None:
    for first, second in (ears, ears[::-1]):
        one, two = job("one", {"speech": hear()}, ears=first), job("two", {"speech": hear()}, ears=second)
        found = only(one, two)
        (other,) = set(ears) - {kept}
        assert (found.kind, found.outputs) == ("different-rungs", outputs)
        assert [use.implementation for use in found.stages] == [f"ears-{kept}", f"ears-{other}"]
        assert found.saves_compute_s_per_s == PRICES["hear"] * other


def test_a_rung_that_is_not_installed_here_gives_way() -> None:
    one, two = job("one", {"speech": hear()}, ears=1), job("two", {"speech": hear()}, ears=2)
    here = Catalogue([*toys.ALL, type("Small", (Ears,), {"offers": (1,)})])
    (found,) = find_redundancy([one, two], {}, here, costs_of([one, two]))
    assert found.keep == id_of(one, "speech")


class NewEars(Ears):
    version = 2


def test_another_version_of_a_rung_is_another_rung() -> None:
    one = job("one", {"speech": hear()}, ears=3)
    plan = make_plan(Workflow(name="w", stages={"speech": hear()}), Catalogue([NewEars]), Machine(num_cores=2))
    two = msgspec.structs.replace(one, id="two", plan=plan, spans=spans_of(plan, Span(first=0)))
    found = find_redundancy([one, two], {}, Catalogue([NewEars]), {})
    assert [(each.kind, each.keep) for each in found] == [("different-rungs", plan.stages[0].id)]
    assert "ears-2 (version 2) (two), ears-3 (one)" in found[0].why


def test_a_longer_window_covers_the_shorter() -> None:
    one, two = job("one", asks("Who?"), window=4), job("two", asks("Who?"), window=12)
    found = only(one, two)
    assert (found.kind, found.outputs) == ("windows", "longer window")
    assert found.keep == id_of(two, "answer")
    assert found.saves_compute_s_per_s == 8.0
    assert found.why.startswith("answer: 12 segments (two), 4 segments (one) differ in how far they look back")


def test_a_longer_window_on_a_worse_rung_covers_nothing() -> None:
    shorter = job("one", asks("Who?"), window=4, replies=2)
    assert report(shorter, job("two", asks("Who?"), window=12, replies=1)) == []
    widest = job("three", asks("Who?"), window=20, replies=1)
    found = only(shorter, job("two", asks("Who?"), window=12, replies=1), widest)
    assert [use.jobs for use in found.stages] == [("three",), ("two",)]


def test_a_window_is_covered_only_where_something_is_asked_of_both() -> None:
    jobs = [
        job("long", asks("Who?"), 0, 5, window=12, replies=1),
        job("good", asks("Who?"), 5, 10, window=8, replies=2, submitted_ns=1),
        job("short", asks("Who?"), 10, 15, window=4, replies=1, submitted_ns=2),
    ]
    assert [use.jobs for use in only(*jobs).stages] == [("good",), ("short",)]
    assert report(jobs[0], jobs[2]) == []


def test_a_question_about_a_range_is_no_standing_one() -> None:
    assert report(job("one", asks("Who?")), job("two", asks("Who?"), 0, 9, window=None)) == []


def test_wording_rung_and_window_may_differ_at_once_and_each_stage_is_saved_once() -> None:
    jobs = [
        job("a", asks("Who?"), window=4),
        job("b", asks("who"), window=4, submitted_ns=1),
        job("c", asks("WHO"), window=12, replies=2, submitted_ns=2),
        job("d", asks("Who?"), window=4, replies=1, submitted_ns=3),
    ]
    found = report(*jobs)
    assert [(each.kind, [use.jobs[0] for use in each.stages]) for each in found] == [
        ("same-but-for-wording", ["a", "b"]),
        ("windows", ["c", "a"]),
        ("different-rungs", ["a", "d"]),
    ]
    assert [each.saves_compute_s_per_s for each in found] == [8.0, 8.0, 6.0]


# --- what follows ------------------------------------------------------------------------------------------------


def test_stages_behind_a_merge_go_with_it_and_are_counted_there() -> None:
    deep = {"speech": hear(), "sum": add("speech"), "answer": reply("Who?", "sum")}
    one, two = job("one", deep, ears=1), job("two", deep, ears=2)
    found = only(one, two)
    assert (found.kind, found.keep) == ("different-rungs", id_of(two, "speech"))
    assert [(use.id, use.name) for use in found.followers] == [
        (id_of(one, "sum"), "sum"),
        (id_of(one, "answer"), "answer"),
    ]
    assert found.saves_compute_s_per_s == sum(map(price, one.plan.stages)) == 10.0 + 1.0 + 8.0


def test_wordings_over_stages_that_are_to_be_merged_are_found_as_well() -> None:
    one, two = job("one", asks("Who?"), ears=1), job("two", asks("who"), ears=2)
    assert [(each.kind, each.followers) for each in report(one, two)] == [
        ("different-rungs", ()),
        ("same-but-for-wording", ()),
    ]


def both(first: Stage, second: Stage) -> dict[str, Stage]:
    return {"speech": first, "sounds": second, "answer": reply("Who?", "speech", "sounds"), "sum": add("answer")}


def test_what_two_findings_make_equal_is_a_finding_of_its_own_with_what_follows() -> None:
    one = job("one", both(hear(language="en"), hear(add=1, language="de")))
    two = job("two", both(hear(language="EN"), hear(add=1, language="DE")), submitted_ns=1)
    found = report(one, two)
    assert [each.kind for each in found] == ["same-but-for-wording", "same-but-for-wording", "upstream"]
    last = found[-1]
    assert last.keep == id_of(one, "answer")
    assert [use.id for use in last.stages] == [id_of(one, "answer"), id_of(two, "answer")]
    assert [use.id for use in last.followers] == [id_of(two, "sum")]
    assert last.saves_compute_s_per_s == 8.0 + 1.0
    assert last.why == (
        "answer: answer (one), answer (two) differ only in what they read, and are one once speech and sounds are "
        "merged"
    )


def test_what_only_one_of_its_inputs_makes_equal_follows_that_one() -> None:
    one = job("one", both(hear(language="en"), hear(add=1)))
    two = job("two", both(hear(language="EN"), hear(add=1)), submitted_ns=1)
    three = job("three", {"spoken": hear(language=" en")}, submitted_ns=2)  # merged too, but nothing else follows
    found = only(one, two, three)
    assert [use.jobs for use in found.stages] == [("one",), ("two",), ("three",)]
    assert [use.name for use in found.followers] == ["answer", "sum"]


def test_what_both_read_as_it_is_has_no_part_in_making_them_equal() -> None:
    one = job("one", both(hear(language="EN"), hear(add=1, language="de")))
    two = job("two", both(hear(language="EN"), hear(add=1, language="DE")), submitted_ns=1)
    others = [job(f"j{number}", {"spoken": hear(language="en")}, submitted_ns=2) for number in range(3)]
    speech, sounds = sorted(report(one, two, *others), key=lambda each: len(each.followers))
    assert (speech.keep, speech.followers) == (id_of(others[0], "spoken"), ())
    assert sounds.keep == id_of(one, "sounds")
    assert [use.id for use in sounds.followers] == [id_of(two, "answer"), id_of(two, "sum")]


def test_a_stage_that_reads_both_of_two_that_become_one_reads_one() -> None:
    twice = {"a": hear(language="en"), "b": hear(language="EN"), "answer": reply("Who?", "a", "b")}
    once = {"a": hear(language="en"), "answer": reply("Who?", "a")}
    one, two = job("one", twice), job("two", once, submitted_ns=1)
    found = only(one, two)
    assert found.keep == id_of(two, "a")
    assert [use.id for use in found.followers] == [id_of(one, "answer")]


# --- what is computed once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["done", "canceled", "failed"])
def test_jobs_that_have_ended_compute_nothing(state: str) -> None:
    assert report(job("one", asks("Who?")), job("two", asks("who"), state=state)) == []


@pytest.mark.parametrize(
    ("one", "two", "num_found"),
    [
        ((0, 4), (5, 9), 0),
        ((0, 5), (5, 9), 1),
        ((0, None), (900, 910), 1),
        ((5, None), (0, 4), 0),
    ],
)
def test_different_stretches_are_not_computed_twice(one: Any, two: Any, num_found: int) -> None:
    jobs = [job("one", {"speech": hear(language="en")}, *one), job("two", {"speech": hear(language="EN")}, *two)]
    assert len(report(*jobs)) == num_found


@pytest.mark.parametrize(("one", "two", "num_found"), [((0, 9), (0, 9), 1), ((0, 9), (0, 8), 0), ((0, 9), (1, 9), 0)])
def test_a_range_is_computed_twice_only_where_it_is_the_same(one: Any, two: Any, num_found: int) -> None:
    jobs = [job("one", asks("Who?"), *one, window=None), job("two", asks("who"), *two, window=None)]
    assert len(report(*jobs)) == num_found


def test_what_serves_for_several_ranges_serves_for_each() -> None:
    jobs = [
        job("a", asks("Who?"), 0, 4, window=None),
        job("b", asks("Who?"), 3, 9, window=None, submitted_ns=1),
        job("c", asks("who"), 0, 4, window=None, submitted_ns=2),
        job("d", asks("Who?"), 3, 9, window=None, replies=1, submitted_ns=3),
    ]
    assert [each.kind for each in report(*jobs)] == ["same-but-for-wording", "different-rungs"]


def test_one_stretch_may_join_two_that_do_not_meet() -> None:
    spoken = [hear(language=text) for text in ("en", "En", "EN")]
    jobs = [job(f"j{n}", {"speech": spoken[n]}, *span) for n, span in enumerate([(0, 4), (3, 9), (8, 12)])]
    assert len(only(*jobs).stages) == 3


def test_the_same_on_two_streams_is_not_redundant() -> None:
    assert report(job("one", asks("Who?")), job("two", asks("who"), stream="door")) == []


def test_what_has_no_result_yet_is_named_without_a_figure() -> None:
    jobs = [job("one", asks("Who?")), job("two", asks("who")), job("three", asks("Who"))]
    (found,) = find_redundancy(jobs, {}, CATALOGUE, {})
    assert (found.saves_compute_s_per_s, found.is_measured) == (0.0, False)
    costs = {id_of(jobs[0], "answer"): Cost(compute_s_per_s=1.0), id_of(jobs[1], "answer"): Cost(compute_s_per_s=2.0)}
    (found,) = find_redundancy(jobs, {}, CATALOGUE, costs)
    assert not found.is_measured
    assert 0 < found.saves_compute_s_per_s <= 2.0


# --- streams of one source ---------------------------------------------------------------------------------------

URL = "rtsp://viewer:s3cret@10.0.0.7/door?token=t0psecret"


def declared(name: str, url: str = URL, **more: Any) -> StreamSpec:
    return StreamSpec(**({"name": name, "policy": "live", "url": url} | more))


def test_streams_of_one_source_run_everything_twice_that_both_are_asked_for() -> None:
    jobs = [
        job("one", asks("Who?")),
        job("two", asks("Who?"), stream="copy"),
        job("three", {"speech": hear(add=1)}, stream="copy", submitted_ns=1),
    ]
    streams = {"cam": declared("cam"), "copy": declared("copy", URL.replace("10.0.0.7/", "10.0.0.7:554/"))}
    found = only(*jobs, streams=streams)
    assert (found.kind, found.keep, found.streams, found.outputs) == ("same-source", "copy", ("copy", "cam"), "same")
    assert [(use.name, use.stream, use.jobs) for use in found.stages] == [
        ("speech", "copy", ("two",)),
        ("speech", "cam", ("one",)),
        ("answer", "copy", ("two",)),
        ("answer", "cam", ("one",)),
    ]
    assert found.saves_compute_s_per_s == 20.0 + 8.0
    assert found.why == (
        "copy and cam are read from one source, rtsp://10.0.0.7:554/...: "
        "keep copy, forget cam and submit those jobs on copy"
    )
    assert "secret" not in msgspec.json.encode(found).decode()


def test_a_stage_saved_with_its_stream_is_not_saved_again() -> None:
    jobs = [job(f"{n}{stream}", asks(text), stream=stream) for stream in "ab" for n, text in enumerate(["Who?", "who"])]
    found = report(*jobs, streams={"a": declared("a"), "b": declared("b")})
    assert [(each.kind, each.streams) for each in found] == [
        ("same-source", ("a", "b")),
        ("same-but-for-wording", ("a",)),
    ]
    assert [each.saves_compute_s_per_s for each in found] == [20.0 + 8.0 + 8.0, 8.0]


def test_a_merge_of_streams_that_are_cut_otherwise_says_so() -> None:
    jobs = [job("one", asks("Who?")), job("two", asks("Who?"), stream="copy")]
    streams = {"cam": declared("cam"), "copy": declared("copy", segment_s=2.0)}
    assert only(*jobs, streams=streams).outputs == "other segments"


@pytest.mark.parametrize("streams", [{"cam": ""}, {"cam": "", "copy": ""}, {"cam": "-", "copy": "-"}, {"cam": URL}])
def test_streams_that_clients_bring_have_no_source_in_common(streams: dict[str, str]) -> None:
    jobs = [job("one", asks("Who?")), job("two", asks("Who?"), stream="copy")]
    assert report(*jobs, streams={name: declared(name, url) for name, url in streams.items()}) == []


def test_streams_of_one_source_that_share_no_stage_compute_nothing_twice() -> None:
    jobs = [job("one", {"speech": hear()}), job("two", {"speech": hear(add=1)}, stream="copy")]
    assert report(*jobs, streams={"cam": declared("cam"), "copy": declared("copy")}) == []


@pytest.mark.parametrize(
    "other",
    [
        "RTSP://user:pw@CAM.example/x?b=2&a=1",
        "rtsp://user:pw@cam.example:554/x?a=1&b=2",
        "rtsp://us%65r:pw@cam.example/x?a=1&b=2#t",
        " rtsp://user:pw@cam.example/x?a=1&b=2 ",
    ],
)
def test_a_source_is_the_same_however_its_url_is_written(other: str) -> None:
    assert same_place(other) == same_place("rtsp://user:pw@cam.example/x?a=1&b=2")


@pytest.mark.parametrize(
    "other",
    [
        "rtsp://user:other@cam.example/x?a=1",
        "rtsp://cam.example/x?a=1",
        "rtsp://user:pw@cam.example:8554/x?a=1",
        "rtsp://user:pw@cam.example/X?a=1",
        "rtsp://user:pw@cam.example/x?a=2",
        "rtsp://user:pw@cam2.example/x?a=1",
        "rtmp://user:pw@cam.example/x?a=1",
        "/x",
    ],
)
def test_other_credentials_places_or_settings_are_another_source(other: str) -> None:
    assert same_place(other) != same_place("rtsp://user:pw@cam.example/x?a=1")


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("http://h", "http://h:80/", True),
        ("srt://h:9000", "srt://h:9001", False),
        ("file:///a%20b.mp4", "/a b.mp4", True),
        ("device:/dev/video0", "device:/dev/video0", True),
        ("http://h:nan/", "http://h:nan/", True),
        ("http://h:nan/", "http://h/", False),
        ("udp://@:1234", "udp://@:1235", False),
    ],
)
def test_sources_without_a_host_or_a_valid_one_are_compared_as_they_are(one: str, other: str, are_same: bool) -> None:
    assert (same_place(one) == same_place(other)) is are_same


# --- whatever the jobs -------------------------------------------------------------------------------------------

QUESTIONS = ["Who?", "who", " WHO!", "What?"]
LANGUAGES = ["en", "EN", "de"]


@st.composite
def recipes(draw: st.DrawFn, spans: bool = False) -> dict[str, Any]:
    """What a job asks for: stages two to four deep, over what other jobs use as well or nearly so."""
    stages = {
        "speech": hear(language=draw(st.sampled_from(LANGUAGES)), add=draw(st.integers(0, 1))),
        "sounds": hear(language=draw(st.sampled_from(LANGUAGES))),
        "sum": add("speech", add=draw(st.integers(0, 1))),
    }
    sources = draw(st.lists(st.sampled_from(["speech", "sounds", "sum"]), min_size=1, max_size=3, unique=True))
    stages["answer"] = reply(draw(st.sampled_from(QUESTIONS)), *sources)
    stages["after"] = add("answer")
    first = draw(st.integers(0, 6)) if spans else 0
    return {
        "stages": stages,
        "ears": draw(st.sampled_from([1, 2, 3])),
        "replies": draw(st.sampled_from([1, 2])),
        "window": draw(st.sampled_from([2, 4, 6])),
        "stream": draw(st.sampled_from(["a", "b"])),
        "first": first,
        "last": draw(st.one_of(st.none(), st.integers(first, 8))) if spans else None,
    }


def jobs_of(recipes: Sequence[dict[str, Any]]) -> list[JobSpec]:
    return [job(f"j{number}", **recipe, submitted_ns=number // 2) for number, recipe in enumerate(recipes)]


STANDING = st.lists(recipes(), max_size=5).map(jobs_of)

# What a merge above makes of a stage is one that a merge here gives up; and what it makes of two.
MERGED_TWICE = jobs_of(
    [
        {"stages": {"speech": hear(add=1), "answer": reply("Who?", "speech")}, "ears": ears, "window": window}
        for ears, window in ((1, 2), (1, 4), (2, 2))
    ]
)
MERGED_BY_TWO = jobs_of(
    [
        {
            "stages": {"one": hear(add=1), "other": hear(), "answer": reply("Who?", "one", "other")},
            "ears": ears,
            "replies": 1,
            "window": window,
        }
        for ears, window in ((2, 2), (1, 4), (1, 2))
    ]
)
MERGED_AS_ONE = jobs_of(
    [
        {
            "stages": {
                "en": hear(),
                "EN": hear(language="EN"),
                "sum": add(summed),
                "answer": reply(question, read, "sum"),
            }
        }
        for question, summed, read in (("Who?", "EN", "EN"), ("who", "en", "en"), ("who", "en", "EN"))
    ]
)
ANY = st.lists(recipes(spans=True), max_size=5).map(jobs_of)
STREAMS = st.sampled_from([{}, {"a": declared("a"), "b": declared("b")}])


def total(jobs: Sequence[JobSpec]) -> float:
    """What all running stages cost."""
    streams = {job.stream for job in jobs}
    return sum(price(s.planned) for name in streams for s in running_stages([j for j in jobs if j.stream == name]))


def saving(found: Sequence[Redundancy]) -> float:
    return sum(each.saves_compute_s_per_s for each in found)


def made(jobs: Sequence[JobSpec], found: Sequence[Redundancy]) -> list[JobSpec]:
    """The jobs once these merges are made: each stage that is given up replaced by the one kept."""
    replaced = {(use.stream, use.id): each.keep for each in found for use in each.stages[1:]}
    return [
        _after(spec, {id: keep for (name, id), keep in replaced.items() if name == spec.stream}, jobs) for spec in jobs
    ]


def _after(spec: JobSpec, replaced: Mapping[str, str], jobs: Sequence[JobSpec]) -> JobSpec:
    """From the media down: what the merges above make of a stage may be one that a merge here gives up."""
    every = in_order(planned for job in jobs if job.stream == spec.stream for planned in job.plan.stages)
    depths: dict[str, int] = {}
    for planned in every:
        depths[planned.id] = 1 + max((depths.get(source, 0) for source in planned.sources), default=0)
    becomes: dict[str, str] = {}
    built: dict[str, PlannedStage] = {}
    for depth in range(1, max(depths.values(), default=0) + 1):
        level = {planned.id: _on(planned, becomes) for planned in every if depths[planned.id] == depth}
        pairs = [(level[id].id, level[replaced[id]].id) for id in level if id in replaced]
        kept = {given_up: keep for given_up, keep in pairs if given_up != keep}  # else they are one by what they read
        for id, merged_above in level.items():
            becomes[id] = merged_above.id
            while becomes[id] in kept:
                becomes[id] = kept[becomes[id]]
            built[merged_above.id] = merged_above
    answers = tuple(dict.fromkeys(becomes[id] for id in spec.plan.answers))
    needed = list(answers)
    for id in needed:
        needed += [source for source in built[id].sources if source in built and source not in needed]
    plan = Plan(workflow="w", stages=tuple(in_order(built[id] for id in needed)), answers=answers)
    (asked,) = spec.spans[spec.plan.answers[0]]
    return msgspec.structs.replace(spec, plan=plan, spans=spans_of(plan, asked))


def _on(planned: PlannedStage, becomes: Mapping[str, str]) -> PlannedStage:
    """The stage on what its inputs become."""
    inputs = {port: tuple(sorted({becomes.get(s, s) for s in ids})) for port, ids in planned.inputs.items()}
    id = stage_id(planned.capability, [planned.rung], planned.scope, planned.params, inputs)
    return msgspec.structs.replace(planned, id=id, inputs=inputs)


@given(recipes(spans=True), st.integers(1, 4))
def test_jobs_with_equal_plans_have_nothing_redundant_between_them(recipe: dict[str, Any], num: int) -> None:
    alone = find_redundancy(jobs_of([recipe]), {}, CATALOGUE, {})
    assert [kept(each) for each in find_redundancy(jobs_of([recipe] * num), {}, CATALOGUE, {})] == list(
        map(kept, alone)
    )
    plain = {"stages": asks("Who?"), "ears": 1}
    assert find_redundancy(jobs_of([plain] * num), {}, CATALOGUE, {}) == []


def kept(found: Redundancy) -> Any:
    return found.kind, found.keep, [use.id for use in found.stages]


@given(ANY, STREAMS, st.randoms(use_true_random=False))
def test_the_report_does_not_depend_on_the_order_of_jobs(jobs: list[JobSpec], streams: Any, random: Any) -> None:
    find = partial(find_redundancy, streams=streams, catalogue=CATALOGUE, costs=costs_of(jobs))
    shuffled = list(jobs)
    random.shuffle(shuffled)
    assert find(jobs) == find(shuffled)


@given(ANY, STREAMS)
def test_savings_are_in_order_and_never_exceed_what_is_spent(jobs: list[JobSpec], streams: Any) -> None:
    found = find_redundancy(jobs, streams, CATALOGUE, costs_of(jobs))
    savings = [each.saves_compute_s_per_s for each in found]
    assert savings == sorted(savings, reverse=True)
    assert all(each > 0 for each in savings)
    assert saving(found) <= total(jobs)


@given(ANY, STREAMS)
def test_no_stage_is_given_up_twice_and_none_for_itself(jobs: list[JobSpec], streams: Any) -> None:
    given_up = []
    for each in find_redundancy(jobs, streams, CATALOGUE, costs_of(jobs)):
        assert len({(use.stream, use.id) for use in each.stages}) == len(each.stages) > 1
        rest = (
            [use for use in each.stages if use.stream != each.keep] if each.kind == "same-source" else each.stages[1:]
        )
        given_up += [(use.stream, use.id) for use in (*rest, *each.followers)]
    assert len(set(given_up)) == len(given_up)


@given(STANDING)
@example(MERGED_TWICE)
@example(MERGED_AS_ONE)
@example(MERGED_BY_TWO)
def test_all_merges_together_save_what_is_promised_and_leave_nothing_redundant(jobs: list[JobSpec]) -> None:
    found = report(*jobs)
    after = made(jobs, found)
    assert report(*after) == []
    assert total(jobs) - total(after) == pytest.approx(saving(found))


def test_who_comes_to_ask_for_a_stage_by_a_merge_above_is_told_what_to_change_as_well() -> None:
    worded = [each for each in report(*MERGED_AS_ONE) if each.kind == "same-but-for-wording"]
    (asked,) = [each for each in worded if each.stages[0].capability == "reply"]
    assert [use.jobs for use in asked.stages] == [("j0",), ("j1", "j2")]
    assert asked.why.endswith("let j1 and j2 ask as j0")


@given(STANDING)
def test_each_merge_makes_its_finding_vanish(jobs: list[JobSpec]) -> None:
    for each in report(*jobs):
        after = made(jobs, [each])
        given_up = {use.id for use in each.stages[1:]}
        (stream,) = each.streams
        left = {stage.id for job in after if job.stream == stream for stage in job.plan.stages}
        assert not given_up & left
        assert not given_up & {use.id for other in report(*after) if other.streams == (stream,) for use in other.stages}
        assert total(after) < total(jobs)


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)
    assert normalised(f"  {text}\t") == normalised(text)


@given(st.one_of(st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)))
def test_only_texts_are_normalised(value: Any) -> None:
    assert normalised({"a": [value]}) == {"a": [value]}


# --- what stages have cost ---------------------------------------------------------------------------------------


async def put_media(ledger: Ledger, stream: str, num: int) -> None:
    """Segments of one second each."""
    for index in range(num):
        await ledger.put(subjects.media(stream, index), encode(toys.toy_segment(stream, index, index)))


async def put_result(ledger: Ledger, id: str, stream: str, key: Key, compute_s: float | None) -> None:
    measured = None if compute_s is None else Measured(compute_s=compute_s)
    output = msgspec.Raw(encode(toys.Number(value=1)))
    record = Result(stage=id, stream=stream, first=key.first, last=key.last, output=output, measured=measured)
    await ledger.put(subjects.result(id, stream, key), encode(record))


@pytest.mark.anyio
async def test_costs_are_measured_over_the_newest_results_of_every_stream(nats_url: str) -> None:
    one, two = job("one", asks("Who?")), job("two", asks("Who?"), stream="door")
    speech, answer = id_of(one, "speech"), id_of(one, "answer")
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        await put_media(ledger, "cam", 8)
        await put_media(ledger, "door", 4)
        for index in range(8):
            await put_result(ledger, speech, "cam", Key.of(index), 100.0 if index < 4 else 0.25)
        for index in range(4):
            await put_result(ledger, speech, "door", Key.of(index), 0.5)
        assert (await measured_costs(ledger, [one], max_results=4))[speech] == Cost(compute_s_per_s=0.25, num_results=4)
        costs = await measured_costs(ledger, [one, two], max_results=4)
        assert costs == {speech: Cost(compute_s_per_s=(4 * 0.25 + 4 * 0.5) / 8, num_results=8)}
        assert await measured_costs(ledger, [msgspec.structs.replace(one, state="done")]) == {}
        assert answer not in costs


@pytest.mark.anyio
async def test_a_cost_counts_all_outputs_over_a_stretch_and_no_gaps(nats_url: str) -> None:
    spec = job("one", asks("Who?"), 0, 7, window=None)
    speech, answer = id_of(spec, "speech"), id_of(spec, "answer")
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        await put_media(ledger, "cam", 8)
        for key in (Key(0, 0), Key(0, 1), Key(0, 3), Key(0, 7)):  # drafts and the answer itself
            await put_result(ledger, answer, "cam", key, 0.4)
        await put_result(ledger, speech, "cam", Key.of(0), 0.5)
        await put_result(ledger, speech, "cam", Key.of(1), None)  # nobody measured it
        gap = Gap(stage=speech, stream="cam", first=2, last=2, cause="late")
        await ledger.put(subjects.result(speech, "cam", Key.of(2)), encode(gap))
        costs = await measured_costs(ledger, [spec])
        assert costs[answer].compute_s_per_s == pytest.approx(4 * 0.4 / 8)
        assert costs[speech] == Cost(compute_s_per_s=0.5, num_results=1)


@pytest.mark.anyio
async def test_without_media_nothing_can_be_said_of_cost(nats_url: str) -> None:
    spec = job("one", asks("Who?"))
    async with connect(nats_url) as link:
        ledger = await open_ledger(link)
        await put_result(ledger, id_of(spec, "speech"), "cam", Key.of(0), 0.5)
        await ledger.put(subjects.media("cam", 1), b"not a segment")
        assert await measured_costs(ledger, [spec]) == {}
