"""Subjects: what is built is parsed back, and nothing else is parsed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import subjects
from streams.errors import UserError
from streams.subjects import Address, Key

TOKENS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)
INDICES = st.integers(0, subjects.MAX_INDEX)
KEYS = st.tuples(INDICES, INDICES).map(lambda pair: Key(min(pair), max(pair)))


@given(TOKENS, INDICES)
def test_media_subjects_are_parsed_back(stream: str, index: int) -> None:
    assert subjects.parse(subjects.media(stream, index)) == Address("media", "media", stream, Key.of(index))
    assert subjects.parse(subjects.media_end(stream)) == Address("media", "media", stream, None)


@given(TOKENS, TOKENS, KEYS)
def test_result_and_dead_letter_subjects_are_parsed_back(stage: str, stream: str, key: Key) -> None:
    assert subjects.parse(subjects.result(stage, stream, key)) == Address("results", stage, stream, key)
    assert subjects.parse(subjects.dead(stage, stream, key)) == Address("dead", stage, stream, key)


@given(KEYS)
def test_keys_are_parsed_back(key: Key) -> None:
    assert subjects.parse_key(str(key)) == key


@given(st.lists(KEYS, max_size=20))
def test_keys_sort_by_segment(keys: list[Key]) -> None:
    assert sorted(keys) == sorted(keys, key=lambda key: (key.first, key.last))


@pytest.mark.parametrize(
    "text", ["", "-1", "01", "1-1", "5-4", "1-", "-", "1-02", "1-2-3", "x", "1 ", "1\n", "٣", "end"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        subjects.parse_key(text)


@pytest.mark.parametrize("text", ["", "a.b", "a b", "a*", ">", "é", "x" * 129, "a\n", "../a"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="use 1 to 128 of"):
        subjects.token(text)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "penstock",
        "penstock.media.s",
        "penstock.media.s.0.1",
        "penstock.media.s.0-1",
        "penstock.media.s.*",
        "penstock.media..0",
        "other.media.s.0",
        "penstock.results.stage.s.end",
        "penstock.results.stage.s",
        "penstock.answers.job.s",
        "penstock.dead.sta ge.s.1",
    ],
)
def test_what_is_no_subject_of_ours_is_refused(subject: str) -> None:
    with pytest.raises(UserError):
        subjects.parse(subject)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (subjects.parse, subjects.parse_key, subjects.token):
        try:
            parse(text)
        except UserError as error:
            assert "\n" not in str(error)


def test_wildcards_match_what_they_are_for() -> None:
    assert subjects.media_of("s").removesuffix("*") == subjects.media("s", 7).removesuffix("7")
    assert subjects.media_end("s").startswith(subjects.media_of("s").removesuffix("*"))
    assert subjects.results_of("id", "s").removesuffix("*") + "0-3" == subjects.result("id", "s", Key(0, 3))
    assert subjects.answers("job", "s") == "penstock.answers.job.s"
