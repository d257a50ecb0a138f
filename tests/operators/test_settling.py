"""What was said is told when it has come to an end: once, whole, and not before."""

from drafting_words import S, guess
from hypothesis import given
from hypothesis import strategies as st

from operators.heard import Guess, Phrases
from operators.language.turns import turns_of
from operators.speech.settling import MAX_HELD, settled


def told(*guesses: Guess) -> list[list[str]]:
    """What each of the guesses brings to an end."""
    before, found = Phrases(), []
    for each in guesses:
        before = settled(before, each)
        found.append([speech.text for speech in before.observations])
    return found


def test_a_sentence_is_told_when_two_guesses_agree_on_its_end() -> None:
    assert told(guess("When does"), guess("when does it open?"), guess("When does it open? And")) == [
        [],
        [],
        ["when does it open?"],
    ]


def test_what_has_no_end_ends_with_silence() -> None:
    quiet = [guess("it opens at nine", until_s=2.0 + at / 2) for at in range(4)]
    assert told(*quiet) == [[], [], ["it opens at nine"], []]


def test_who_pauses_within_a_sentence_is_waited_for() -> None:
    assert told(
        guess("it opens", until_s=1.0), guess("it opens", until_s=1.4), guess("it opens at nine.", until_s=2.4),
        guess("it opens at nine.", until_s=2.9),
    ) == [[], [], [], ["it opens at nine."]]  # fmt: skip


def test_who_never_ends_is_told_of_all_the_same() -> None:
    words = " ".join(f"w{at}" for at in range(MAX_HELD + 5))
    going_on = guess(words, until_s=(MAX_HELD + 5) / 2)
    assert [len(text.split()) for text in told(going_on, going_on)[1]] == [MAX_HELD]


@given(
    st.lists(st.sampled_from(["train", "Porto.", "nine", "the", "opens?"]), min_size=1, max_size=40), st.integers(1, 5)
)
def test_every_word_is_told_once_in_order(words: list[str], step: int) -> None:
    window = 20
    guesses = []
    for end in [*range(step, len(words), step), *[len(words)] * 3]:
        first = max(0, end - window)
        guesses.append(guess(" ".join(words[first:end]), first, end / 2, first / 2))
    last = guesses[-1]
    for at in range(1, 5):
        guesses.append(Guess(since_ns=last.since_ns, until_ns=last.until_ns + at * S // 2, words=last.words))
    assert " ".join(text for texts in told(*guesses) for text in texts).split() == words


def test_a_turn_is_over_with_its_sentence() -> None:
    before, pending = Phrases(), ()
    turns = []
    for each in (guess("when does it"), guess("When does it open?"), guess("When does it open?", until_s=3)):
        before = settled(before, each)
        ended, pending = turns_of(pending, before.observations)
        turns += [turn.text for turn in ended]
    assert turns == ["When does it open?"]
    assert pending == ()
