"""Drafts of speech: what two guesses agree on is settled, stays so, and nothing of it is lost or said twice."""

from collections.abc import Sequence

import pytest
from drafting_words import WORD_NS, S, guess
from hypothesis import given
from hypothesis import strategies as st

from operators.heard import Drafts, Guess, GuessedWord
from operators.speech.drafting import Drafting, drafted, same
from operators.speech.guessing import WINDOW_S, Guessing, without_echo
from operators.speech.whisper import Said, is_here
from penstock.testing import check_contract, run, segments_of


def said(*guesses: Guess) -> list[tuple[str, str]]:
    """What each of the guesses settles, and what is shown behind that."""
    before, found = Drafts(), []
    for each in guesses:
        before = drafted(before, each)
        texts = {draft.is_settled: draft.text for draft in before.observations}
        found.append((texts.get(True, ""), texts.get(False, "")))
    return found


def test_what_two_guesses_agree_on_is_settled() -> None:
    assert said(guess("the train to"), guess("The train, two Porto"), guess("the train to Porto leaves")) == [
        ("", "the train to"),
        ("The train,", "two Porto"),
        ("", "to Porto leaves"),
    ]


def test_what_is_settled_is_not_settled_twice_though_its_times_move() -> None:
    late = 90_000_000
    times = [(at * WORD_NS + late, (at + 1) * WORD_NS + late) for at in range(3)]
    words = tuple(GuessedWord(*time, text) for time, text in zip(times, ("the", "train", "leaves"), strict=True))
    moved = Guess(since_ns=0, until_ns=4 * S, words=words)
    assert said(guess("the train"), guess("the train"), moved, moved) == [
        ("", "the train"),
        ("the train", ""),
        ("", "leaves"),
        ("leaves", ""),
    ]


def test_a_word_that_is_half_heard_is_not_shown_yet() -> None:
    assert said(guess("the train to Por", until_s=2.2)) == [("", "the train to")]
    assert said(guess("the train to Porto", until_s=2.7)) == [("", "the train to Porto")]
    assert said(guess("the", until_s=0.5)) == [("", "")]


def test_silence_settles_nothing_and_loses_nothing() -> None:
    assert said(guess("the train"), guess("", until_s=3), guess("the train leaves"), guess("the train leaves")) == [
        ("", "the train"),
        ("", ""),
        ("", "the train leaves"),
        ("the train leaves", ""),
    ]


def test_what_is_no_longer_listened_to_is_settled_as_it_is() -> None:
    assert said(guess("a b c d e f"), guess("x y z d e f", since_s=0.5, is_full=True)) == [
        ("", "a b c d e f"),
        ("x y z", "d e f"),
    ]


def test_words_are_the_same_whatever_their_case_and_punctuation() -> None:
    assert same("Porto.", "porto")
    assert not same("two", "to")
    assert same("...", "...")
    assert not same("...", "?")


@given(
    st.lists(st.sampled_from(["train", "Porto", "nine", "the", "the", "to"]), min_size=1, max_size=40),
    st.integers(1, 5),
    st.data(),
)
def test_true_words_are_settled_once_each_however_the_last_ones_are_guessed(
    words: list[str], step: int, data: st.DataObject
) -> None:
    guesses = []
    window = round(WINDOW_S / (WORD_NS / S))
    for end in [*range(step, len(words), step), len(words), len(words)]:
        first = max(0, end - window)
        heard = words[first:end]
        if end < len(words) and data.draw(st.booleans()):
            heard = [*heard[:-1], data.draw(st.sampled_from(["tray", "port"]))]
        guesses.append(guess(" ".join(heard), first, end * WORD_NS / S, first * WORD_NS / S))
    settled = " ".join(text for text, _ in said(*guesses) if text).split()
    assert settled == words


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=8), max_size=8))
def test_what_is_settled_only_grows_in_time(heard: Sequence[Sequence[str]]) -> None:
    before = Drafts()
    for at, words in enumerate(heard):
        now = drafted(before, guess(" ".join(words), at, at + 9.0))
        assert now.agreement.settled_ns >= before.agreement.settled_ns
        for draft in now.observations:
            assert draft.start_ns >= before.agreement.settled_ns - S // 10
            assert draft.text
        before = now


def test_it_holds_to_the_contract() -> None:
    guesses = [guess("the train"), guess("the train leaves"), guess("", until_s=9)]
    check_contract(Drafting, {"guess": guesses})


@pytest.mark.skipif(not is_here("tiny.en"), reason="there are no weights of Whisper tiny.en here")
def test_a_reading_is_drafted_as_it_is_read() -> None:
    media = segments_of("examples/reading.ogg", 1.0, max_segments=8)
    guesses = run(Guessing, {"media": media}, knobs={"size": "tiny.en", "beam_size": 1})
    assert [round(each.until_ns / S) for each in guesses] == [at + 1 for at in range(len(guesses))]
    drafts = run(Drafting, {"guess": guesses})
    settled = [draft.text for each in drafts for draft in each.observations if draft.is_settled]
    assert len(" ".join(settled).split()) > 8


def test_what_a_model_says_in_no_time_or_hardly_hears_is_no_word() -> None:
    real = [Said(at * 1600, at * 1600 + 1200, f" w{at}", 0.9) for at in range(4)]
    echo = [Said(6400, 6400, f" w{at}", 0.9) for at in range(4)]
    faint = Said(6400, 8000, " in.", 0.07)
    assert without_echo([*real, *echo]) == real
    assert without_echo([*real, faint]) == real
    assert without_echo([*real, faint, *echo]) == real
    assert without_echo([echo[0], *real]) == [echo[0], *real], "one that is brief may be one"
    assert without_echo([]) == []


@pytest.mark.parametrize("text", ["oh no no no yes", "ha ha ha ha ha ha ha ha", "no no"])
def test_what_is_really_said_again_is_settled_again(text: str) -> None:
    words = [GuessedWord(at * 180_000_000, (at + 1) * 180_000_000, word) for at, word in enumerate(text.split())]
    before, settled = Drafts(), list[str]()
    for num in [*range(1, len(words) + 1), len(words), len(words)]:
        before = drafted(before, Guess(since_ns=0, until_ns=2 * S, words=tuple(words[:num])))
        settled += [draft.text for draft in before.observations if draft.is_settled]
    assert " ".join(settled) == text
