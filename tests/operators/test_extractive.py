"""The extractive answerer on simulated recogniser output: accuracy on made-up videos, and its single rules."""

import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.capabilities import (
    NOT_IN_THE_VIDEO,
    Reply,
    Scenes,
    ScreenText,
    Shot,
    Speech,
    TextLine,
    Transcript,
    Word,
)
from operators.language.extractive import ExtractiveAnswer
from operators.language.passages import screen_rows, spoken_sentences
from operators.language.questions import parse_question
from operators.language.words import stem, tokenise
from penstock.testing import gap, run

SEGMENT_S = 5.0
SCENARIOS = json.loads((Path(__file__).parent.parent / "data" / "questions.json").read_text())


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def spoken(start_s: float, text: str) -> Speech:
    """An utterance of 0.38 s a word."""
    words = [Word(ns(start_s + 0.38 * i), ns(start_s + 0.38 * i + 0.36), word) for i, word in enumerate(text.split())]
    return Speech(start_ns=words[0].start_ns, end_ns=words[-1].end_ns, text=text, words=tuple(words))


def ask(question: str, *sources: Sequence[Any]) -> Reply:
    """Ask over sources given as one output (or gap) per segment."""
    (reply,) = run(ExtractiveAnswer, {"evidence": sources}, params={"question": question})
    assert isinstance(reply, Reply)
    return reply


# --- simulated recognisers -------------------------------------------------------------------------------------


def misread(text: str, rng: random.Random) -> str:
    """OCR: in one line of ten two alike characters are confused or a letter is lost. Figures stay."""
    if rng.random() > 0.1 or len(text) < 5:
        return text
    place = rng.choice([i for i, letter in enumerate(text) if not letter.isdigit()])
    return text[:place] + {"O": "0", "I": "l", "l": "I", "S": "5"}.get(text[place], "") + text[place + 1 :]


def misheard(text: str, rng: random.Random) -> str:
    """A speech recogniser: small words are lost or exchanged."""
    small = {"the": "a", "a": "the", "and": "in", "is": "as", "of": "a", "on": "in"}
    words = [small[word] if word in small and rng.random() < 0.06 else word for word in text.split()]
    return " ".join(words)


@cache
def evidence_of(name: str) -> tuple[Sequence[Any], ...]:
    """The scenario as three recognisers would give it, one output per segment."""
    scenario = next(scenario for scenario in SCENARIOS if scenario["name"] == name)
    rng = random.Random(name)
    asr = scenario["style"] == "asr"
    utterances = [spoken(start, misheard(text, rng) if asr else text) for start, text in scenario["speech"]]
    end_s = max([said.end_ns / 1e9 for said in utterances] + [until for _, until, _ in scenario["screen"]])
    bounds = [(i * SEGMENT_S, (i + 1) * SEGMENT_S) for i in range(int(end_s // SEGMENT_S) + 1)]
    cuts = scenario["cuts"]
    speech, screen, scenes = [], [], []
    for begin, end in bounds:
        speech.append(
            Transcript(observations=tuple(part for said in utterances if (part := slice_of(said, begin, end))))
        )
        takes = sorted({begin, *(cut for cut in cuts if begin < cut < end)})
        shots = list(zip(takes, [*takes[1:], end], strict=True))
        scenes.append(Scenes(observations=tuple(Shot(start_ns=ns(a), end_ns=ns(b), cut=a in cuts) for a, b in shots)))
        lines = [
            TextLine(start_ns=ns(a), end_ns=ns(b), text=misread(text, rng), box=tuple(box))
            for a, b in shots
            for shown, until, cells in scenario["screen"]
            if shown <= (a + b) / 2 < until
            for text, *box in cells
        ]
        screen.append(ScreenText(observations=tuple(lines)))
    return speech, screen, scenes


def slice_of(said: Speech, begin_s: float, end_s: float) -> Speech | None:
    """The words of an utterance that begin inside a segment."""
    words = tuple(word for word in said.words if ns(begin_s) <= word.start_ns < ns(end_s))
    text = " ".join(word.text for word in words)
    return Speech(start_ns=words[0].start_ns, end_ns=words[-1].end_ns, text=text, words=words) if words else None


def verdict(scenario: Any, question: str, accepted: list[str] | None, kinds: list[str]) -> str:
    """ "" where the reply is right, else what is wrong with it."""
    reply = ask(question, *evidence_of(scenario["name"]))
    if accepted is None:
        return "" if reply.answer == NOT_IN_THE_VIDEO else f"made up {reply.answer!r}"
    if not any(answer.lower() in reply.answer.lower() for answer in accepted):
        return f"wrong {reply.answer!r}"
    found = {support.kind for support in reply.evidence}
    return "" if set(kinds) <= found else f"evidence only {found}"


def mistakes(split: str) -> tuple[list[str], int]:
    questions = [(s, *q) for s in SCENARIOS if s["split"] == split for q in s["questions"]]
    wrong = [f"{q[1]} {fault}" for q in questions if (fault := verdict(*q))]
    return wrong, len(questions)


def test_accuracy_on_the_questions_it_was_developed_with() -> None:
    wrong, num_questions = mistakes("dev")
    assert num_questions >= 80
    assert len(wrong) <= 0.05 * num_questions, "\n".join(wrong)


def test_accuracy_on_held_out_questions() -> None:
    wrong, num_questions = mistakes("held-out")
    assert num_questions >= 60
    assert len(wrong) <= 0.1 * num_questions, "\n".join(wrong)


def test_questions_about_another_video_are_not_answered() -> None:
    asked = [
        (question, ask(question, *evidence_of(video["name"])))
        for about in SCENARIOS
        for video in SCENARIOS
        if about is not video and about["split"] == video["split"]
        for question, *_ in about["questions"]
    ]
    made_up = [f"{question} {reply.answer!r}" for question, reply in asked if reply.answer != NOT_IN_THE_VIDEO]
    assert len(asked) > 500
    assert len(made_up) <= 0.01 * len(asked), "\n".join(made_up)


# --- one rule at a time ----------------------------------------------------------------------------------------


def screen(*cells: tuple[str, float, float], start_s: float = 0.0, end_s: float = 5.0) -> ScreenText:
    """Lines of text at (x, y), each 0.1 wide and 0.05 high."""
    return ScreenText(
        observations=tuple(
            TextLine(start_ns=ns(start_s), end_ns=ns(end_s), text=text, box=(x, y, 0.1, 0.05)) for text, x, y in cells
        )
    )


def transcript(*said: tuple[float, str]) -> Transcript:
    return Transcript(observations=tuple(spoken(start_s, text) for start_s, text in said))


PRICE_SIGN = [screen(("RETURN", 0.1, 0.2), ("12.50", 0.5, 0.2), ("SINGLE", 0.1, 0.3), ("8.00", 0.5, 0.3))]
PRICE_TALK = [transcript((0.5, "the price of a return ticket is on the sign behind me"))]


def test_speech_says_what_and_the_picture_how_much() -> None:
    reply = ask("How much does a return ticket cost?", PRICE_TALK, PRICE_SIGN)
    assert reply.answer == "RETURN 12.50"
    assert [support.kind for support in reply.evidence] == ["text", "speech"]
    assert reply.evidence[0].text == reply.answer
    assert (reply.evidence[0].start_ns, reply.evidence[0].end_ns) == (0, ns(5))
    assert 0.6 <= reply.confidence <= 1


def test_a_price_of_something_else_is_no_answer() -> None:
    reply = ask("How much does a platform ticket cost?", PRICE_TALK, PRICE_SIGN)
    assert (reply.answer, reply.evidence) == (NOT_IN_THE_VIDEO, ())


def test_a_thing_mentioned_without_what_is_asked_of_it_is_no_answer() -> None:
    talk = [transcript((0.5, "the map on this wall shows the whole valley"), (6, "the guide is called bruno"))]
    assert ask("Who drew the map?", talk).answer == NOT_IN_THE_VIDEO
    assert ask("When was the map drawn?", talk).answer == NOT_IN_THE_VIDEO
    assert "bruno" in ask("What is the name of the guide?", talk).answer


def test_speech_and_text_of_the_same_moment_are_joined_by_a_shared_word() -> None:
    talk = [transcript((0.5, "the man at the red desk repairs umbrellas"))]
    sign = [screen(("DESK 4: OPEN UNTIL 18:00", 0.2, 0.6))]
    late = [screen(("DESK 4: OPEN UNTIL 18:00", 0.2, 0.6), start_s=60, end_s=65)]
    question = "Until when can I have my umbrella repaired?"
    reply = ask(question, talk, sign)
    assert reply.answer == "DESK 4: OPEN UNTIL 18:00"
    assert {support.kind for support in reply.evidence} == {"text", "speech"}
    assert ask(question, talk, late).answer == NOT_IN_THE_VIDEO


def test_a_cut_between_them_loosens_speech_from_text() -> None:
    talk = [transcript((0.5, "the old mill grinds wheat and rye"))]
    sign = [screen(("OPEN 9:30", 0.2, 0.6), start_s=5, end_s=9)]
    cut = [Scenes(observations=(Shot(start_ns=ns(4.9), end_ns=ns(9), cut=True),))]
    together, apart = (ask("When is wheat ground in the mill?", talk, sign, *more) for more in ([], [cut]))
    assert apart.answer == NOT_IN_THE_VIDEO
    assert together.confidence > 1 - apart.confidence


@pytest.mark.parametrize("question", ["", "   ", "???", "the of and", "\x00", "Who?", "🚂"])
def test_a_question_that_asks_nothing_has_no_answer(question: str) -> None:
    reply = ask(question, PRICE_TALK, PRICE_SIGN)
    assert (reply.question, reply.answer, reply.evidence) == (question, NOT_IN_THE_VIDEO, ())


def test_no_evidence_and_gaps_only() -> None:
    for sources in ([[gap("lost")] * 2], [[Transcript()], [ScreenText()], [Scenes()]]):
        assert ask("Who drew the map?", *sources) == Reply(
            question="Who drew the map?", answer=NOT_IN_THE_VIDEO, confidence=1.0
        )


def test_the_order_of_sources_does_not_matter() -> None:
    for scenario in SCENARIOS[:3]:
        speech, text, scenes = evidence_of(scenario["name"])
        for question, *_ in scenario["questions"]:
            assert ask(question, speech, text, scenes) == ask(question, scenes, text, speech)


anything = st.text(max_size=60)
moments = st.integers(min_value=0, max_value=10**11)
utterance = st.builds(
    lambda start, length, text: Speech(start_ns=start, end_ns=start + length, text=text),
    moments,
    st.integers(min_value=0, max_value=10**10),
    anything | st.text("the train to leeds leaves at seven forty five half past £12.50 oh hundred ", max_size=60),
)
seen = st.builds(
    lambda start, length, text, x, y: TextLine(start_ns=start, end_ns=start + length, text=text, box=(x, y, 0.2, 0.05)),
    moments,
    st.integers(min_value=0, max_value=10**10),
    anything,
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0, max_value=1),
)


@settings(max_examples=100, deadline=None)
@given(anything, st.lists(utterance, max_size=6), st.lists(seen, max_size=6))
def test_any_evidence_gives_a_reply_within_it(question: str, said: list[Speech], lines: list[TextLine]) -> None:
    words = " ".join([question, *(speech.text[:8] for speech in said)])
    reply = ask(words, [Transcript(observations=tuple(said))], [ScreenText(observations=tuple(lines))])
    assert 0 <= reply.confidence <= 1
    assert (reply.answer == NOT_IN_THE_VIDEO) == (not reply.evidence)
    first = min((o.start_ns for o in [*said, *lines]), default=0)
    last = max((o.end_ns for o in [*said, *lines]), default=0)
    for support in reply.evidence:
        assert first <= support.start_ns <= support.end_ns <= last
    if reply.evidence:
        assert reply.evidence[0].text == reply.answer


# --- words and figures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("seven forty five", "#7:45"),
        ("7:45", "#7:45"),
        ("seven oh five", "#7:05"),
        ("seven o'clock", "#7:00"),
        ("half past seven", "#7:30"),
        ("quarter to eight", "#7:45"),
        ("nine p m", "#21:00"),
        ("9:15 am", "#9:15"),
        ("twelve pounds fifty", "#12.5"),
        ("£12.50", "#12.5"),
        ("fifty cents", "#0.5"),
        ("two hundred and fifty", "#250"),
        ("three thousand five hundred", "#3500"),
        ("31,405", "#31405"),
        ("nineteen sixty one", "#1961"),
        ("two thousand nineteen", "#2019"),
        ("four four one seven", "#4417"),
        ("one point five", "#1.5"),
        ("third", "#3."),
        ("3rd", "#3."),
    ],
)
def test_figures_written_and_spoken_are_the_same(text: str, stems: str) -> None:
    assert " ".join(token.stem for token in tokenise(text)) == stems


@pytest.mark.parametrize(
    ("a", "b"),
    [("repairs", "repaired"), ("umbrellas", "umbrella"), ("drawn", "draw"), ("stopped", "stops"), ("ferries", "ferry"),
     ("making", "makes"), ("opened", "open"), ("children", "child"), ("boxes", "box")],
)  # fmt: skip
def test_forms_of_one_word_share_a_stem(a: str, b: str) -> None:
    assert stem(a) == stem(b)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who drew the map?", "person"),
        ("When does the train leave?", "time"),
        ("At what time does it open?", "time"),
        ("How much does a ticket cost?", "money"),
        ("What is the price of honey?", "money"),
        ("How many screws are needed?", "count"),
        ("How much flour is needed?", "quantity"),
        ("How long does it take?", "duration"),
        ("How long is the bridge?", "length"),
        ("Where is the shop?", "place"),
        ("Why is it closed?", "reason"),
        ("What colour is the door?", "colour"),
        ("Which platform does it leave from?", "label"),
        ("Which number should I call?", "contact"),
        ("What does the sign at the door say?", "text"),
        ("Is the shop open?", "yes_no"),
        ("What do they sell?", "anything"),
    ],
)
def test_what_a_question_expects(question: str, kind: str) -> None:
    assert parse_question(question).kind == kind


# --- passages ------------------------------------------------------------------------------------------------------


def test_an_utterance_cut_by_a_segment_boundary_is_one_sentence() -> None:
    whole = spoken(3.0, "the train to leeds leaves at seven forty five")
    parts = [part for begin in (0, 5) if (part := slice_of(whole, begin, begin + 5))]
    assert len(parts) == 2
    (sentence,) = spoken_sentences(parts)
    assert (sentence.text, sentence.start_ns, sentence.end_ns) == (whole.text, whole.start_ns, whole.end_ns)


def test_punctuated_speech_is_cut_into_sentences_with_their_times() -> None:
    said = spoken(0.0, "Dr. Falk paid £3.50. Then she left!")
    first, second = spoken_sentences([said])
    assert (first.text, second.text) == ("Dr. Falk paid £3.50.", "Then she left!")
    assert second.start_ns == said.words[4].start_ns


def test_a_line_read_in_many_frames_is_one_row_over_their_union() -> None:
    readings = ["DEPARTURES", "DEPARTURE5", "DEPARTUES", "DEPARTURES"]
    frames = [screen((text, 0.1, 0.1), start_s=5 * i, end_s=5 * i + 5) for i, text in enumerate(readings)]
    (row,) = screen_rows(line for frame in frames for line in frame.observations)
    assert (row.text, row.start_ns, row.end_ns) == ("DEPARTURES", 0, ns(20))


def test_a_changed_figure_is_another_line() -> None:
    frames = [
        screen((text, 0.1, 0.1), start_s=5 * i, end_s=5 * i + 5) for i, text in enumerate(["BUS 7:45", "BUS 7:46"])
    ]
    assert [row.text for row in screen_rows(line for f in frames for line in f.observations)] == [
        "BUS 7:45",
        "BUS 7:46",
    ]


def test_boxes_side_by_side_form_a_row_with_the_headings_of_their_columns() -> None:
    board = screen(("TOWN", 0.1, 0.1), ("GATE", 0.5, 0.1), ("4", 0.52, 0.21), ("LEEDS", 0.1, 0.2), ("YORK", 0.1, 0.3))
    rows = screen_rows(board.observations)
    assert [row.text for row in rows] == ["TOWN GATE", "LEEDS 4", "YORK"]
    assert [token.text for token in rows[1].tokens] == ["town", "leeds", "gate", "4"]
    assert ask("Which gate does the bus to Leeds go from?", [board]).answer == "LEEDS 4"


def test_a_reason_may_be_told_by_the_verb_alone() -> None:
    talk = [transcript((0.5, "a fallen tree has blocked the road to the beach"), (8, "the beach is clean"))]
    assert "fallen tree" in ask("Why is the road to the beach not open?", talk).answer
    assert ask("Why is the beach not open?", [transcript((8, "the beach is clean"))]).answer == NOT_IN_THE_VIDEO


def test_a_general_word_of_the_question_stands_for_a_particular_one() -> None:
    talk = [transcript((0.5, "the ferry carries ninety passengers"))]
    assert "ninety" in ask("How many people travel on the ferry?", talk).answer
    assert ask("How many passengers travel on the train?", talk).answer == NOT_IN_THE_VIDEO


@pytest.mark.parametrize(
    "word", ["5@x", "4@station", "2fast@mail.example", "1.2.", "3..4", "7:", ":5", "1,", "٣", "5²", "12:99"]
)
def test_what_only_begins_like_a_figure_is_a_word(word: str) -> None:
    assert tokenise(word)
    assert tokenise(f"platform {word} at noon")
