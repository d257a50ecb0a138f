"""The index of passages: what is taken in is found, what has gone is not, whatever became of its file."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from operators.heard import Speech, Transcript
from operators.language.index import NUM_CANDIDATES, PassageIndex
from operators.seen import Event, Events, Objects, ScreenText, Sighting, TextLine, TrackedObject, Tracks
from streams.errors import Transient, UserError

S = 1_000_000_000
Open = Callable[..., PassageIndex]
TOPICS = {"train": 0, "railway": 0, "leeds": 0, "onions": 1, "broth": 1, "stock": 1, "choir": 2}


def vectors(texts: list[str]) -> NDArray[np.float32]:
    """A model that knows three topics."""
    made = np.full((len(texts), 4), 0.01, np.float32)
    for row, text in zip(made, texts, strict=True):
        for word, topic in TOPICS.items():
            row[topic] += word in text.lower()
    normal: NDArray[np.float32] = made / np.linalg.norm(made, axis=1, keepdims=True)
    return normal


def said(*texts: str, start_s: float = 0.0) -> Transcript:
    return Transcript(
        observations=tuple(
            Speech(start_ns=int((start_s + 5 * at) * S), end_ns=int((start_s + 5 * at + 4) * S), text=text)
            for at, text in enumerate(texts)
        )
    )


def shown(*texts: str) -> ScreenText:
    """Rows below one another, at once."""
    return ScreenText(
        observations=tuple(
            TextLine(start_ns=0, end_ns=5 * S, text=text, box=(0.1, 0.1 + 0.2 * at, 0.5, 0.05))
            for at, text in enumerate(texts)
        )
    )


@pytest.fixture
def opened() -> Iterator[Open]:
    """What opens an index that is closed in the end."""
    with ExitStack() as closed:

        def open_it(*arguments: Any) -> PassageIndex:
            return closed.enter_context(closing(PassageIndex(*arguments)))

        yield open_it


@pytest.fixture
def index(tmp_path: Path, opened: Open) -> PassageIndex:
    return opened(tmp_path / "deep" / "index.sqlite", vectors)


def fill(index: PassageIndex) -> None:
    while index.fill():
        pass


def found(index: PassageIndex, text: str, num: int = 3, streams: list[str] | None = None) -> list[str]:
    fill(index)
    return [hit.text for hit in index.search(text, num, streams)]


def test_it_finds_by_meaning_what_has_none_of_the_words(index: PassageIndex) -> None:
    index.update("t", "a", {(0, 0): said("The train to Leeds leaves at nine.")})
    index.update("t", "b", {(0, 0): said("We add the onions to the stock.")})
    fill(index)
    (first, second) = index.search("when is the railway", 2)
    assert (first.stream, first.text) == ("a", "The train to Leeds leaves at nine.")
    assert (first.start_ns, first.end_ns, first.kind) == (0, 4 * S, "speech")
    assert first.score > second.score
    assert found(index, "broth", 1) == ["We add the onions to the stock."]
    assert found(index, "broth", 3, ["a"]) == ["The train to Leeds leaves at nine."]
    assert found(index, "broth", 3, []) == []


def test_by_words_alone_only_what_has_one_is_found_in_any_of_its_forms(tmp_path: Path, opened: Open) -> None:
    index = opened(tmp_path / "i")
    index.update("t", "a", {(0, 0): said("Chop the onions.")})
    index.update("t", "b", {(0, 0): said("A café in Zürich.")})
    assert index.fill() == 0
    assert found(index, "an onion?") == ["Chop the onions."]
    assert found(index, "CAFE in zurich") == ["A café in Zürich."]
    assert found(index, "broth") == []
    assert found(index, '"?*( AND NEAR)') == []


@pytest.mark.parametrize(
    "text", ['"', "a OR b", "meaning:x", "*", "NOT", "x" * 2000, "\0", "ünï ☃", "-", "'; DROP TABLE words"]
)
def test_whatever_is_asked_is_words(index: PassageIndex, text: str) -> None:
    index.update("t", "a", {(0, 0): said("The train to Leeds leaves at nine.")})
    assert len(found(index, text)) == 1


def test_what_is_known_is_said_and_what_has_gone_is_not_found(index: PassageIndex) -> None:
    index.update("t", "a", {(0, 0): said("The train leaves."), (1, 1): said("The choir sings.", start_s=60)})
    assert index.known("t", "a") == {(0, 0), (1, 1)}
    assert index.known("t", "b") == set()
    index.update("t", "a", {(1, 1): said("The choir is silent.", start_s=60)})
    assert sorted(found(index, "choir", 9)) == ["The choir is silent.", "The train leaves."]
    index.update("t", "a", {}, {(1, 1)})
    assert index.known("t", "a") == {(0, 0)}
    assert found(index, "choir", 9) == ["The train leaves."]
    index.update("t", "b", {(0, 0): said("A choir.")})
    index.keep_only({("t", "b")})
    assert found(index, "train choir", 9) == ["A choir."]
    assert index.known("t", "a") == set()


def test_a_sentence_over_two_segments_is_one_passage_once_both_are_there(index: PassageIndex) -> None:
    index.update("t", "a", {(0, 0): said("the train to")})
    index.update("t", "a", {(1, 1): said("Leeds is late.", start_s=4.5)})
    assert found(index, "train", 9) == ["the train to Leeds is late."]


def test_what_overlaps_says_the_same_but_rows_of_a_screen_do_not(index: PassageIndex) -> None:
    index.update("t", "a", {(0, 0): said("The train leaves.")})
    index.update("u", "a", {(0, 0): said("the train leafs")})  # heard by another rung
    index.update("r", "a", {(0, 0): shown("TRAIN 12", "CAFE", "EXIT")})
    texts = found(index, "train", 9)
    assert sum("train" in text for text in texts) == 1
    assert {"CAFE", "EXIT"} <= {text.split("TRAIN 12")[-1].strip() for text in texts}


def test_vectors_are_made_once(tmp_path: Path, opened: Open) -> None:
    made: list[str] = []

    def counting(texts: list[str]) -> NDArray[np.float32]:
        made.extend(texts)
        return vectors(texts)

    index = opened(tmp_path / "i", counting)
    index.update("t", "a", {(0, 0): said("The train leaves.")})
    assert index.fill() == 0
    index.update("t", "a", {(9, 9): said("The choir sings.", start_s=90)})
    fill(index)
    assert made == ["The train leaves.", "The choir sings."]
    index.close()
    again = opened(tmp_path / "i", counting)
    fill(again)
    assert [hit.text for hit in again.search("train", 1)] == ["The train leaves."]
    assert made[2:] == ["train"]


def test_what_was_taken_in_without_a_model_gets_its_vectors_later(tmp_path: Path, opened: Open) -> None:
    opened(tmp_path / "i").update("t", "a", {(0, 0): said("The train leaves.")})
    index = opened(tmp_path / "i", vectors)
    assert index.search("railway", 1) == []
    assert found(index, "railway") == ["The train leaves."]


def test_more_than_are_ranked_are_still_ranked_rightly(index: PassageIndex) -> None:
    noise = {(at, at): said(f"Number {at} of them.", start_s=20 * at) for at in range(2 * NUM_CANDIDATES)}
    index.update("t", "a", noise | {(999, 999): said("The choir sings.", start_s=99_999)})
    assert found(index, "choir", 1) == ["The choir sings."]


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"", None])
def test_a_file_that_is_none_or_of_another_version_is_begun_anew(
    tmp_path: Path, content: bytes | None, opened: Open
) -> None:
    path = tmp_path / "i"
    if content is None:
        other = sqlite3.connect(path)
        other.executescript("CREATE TABLE outputs (x); CREATE TABLE mine (x); PRAGMA user_version = 99;")
        other.close()
    else:
        path.write_bytes(content)
    index = opened(path, vectors)
    index.update("t", "a", {(0, 0): said("The train leaves.")})
    assert found(index, "train") == ["The train leaves."]


def test_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep an index in .*; give a folder you can write"):
        PassageIndex(tmp_path / "file" / "index.sqlite").known("t", "a")


def test_one_that_is_damaged_while_it_is_open_is_begun_anew(tmp_path: Path, opened: Open) -> None:
    index = opened(tmp_path / "i", vectors)
    index.update("t", "a", {(0, 0): said("The train leaves.")})
    other = sqlite3.connect(tmp_path / "i")
    other.executescript("PRAGMA writable_schema = 1; UPDATE sqlite_master SET sql = 'x' WHERE name = 'passages';")
    other.execute("PRAGMA schema_version = 4711")
    other.close()
    with pytest.raises(Transient, match=r"the index .* cannot be used: .*; search again"):
        index.search("train", 1)
    assert index.known("t", "a") == set()
    index.update("t", "a", {(0, 0): said("The train leaves.")})
    assert found(index, "train") == ["The train leaves."]


def test_several_write_and_search_at_once(tmp_path: Path, opened: Open) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            index = PassageIndex(tmp_path / "i", vectors)
            for at in range(5):
                index.update("t", f"s{number}", {(at, at): said(f"The train {number} {at}.", start_s=60 * at)})
                index.fill()
                index.search("train", 3)
            index.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    index = opened(tmp_path / "i", vectors)
    assert len(found(index, "train", 100)) == 20


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_the_order_in_which_outputs_come_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
) -> None:
    outputs = {(at, at): said(f"Word{at} of the train. Then more", start_s=5 * at) for at in range(6)}

    def all_of(*parts: list[int]) -> list[tuple[str, int]]:
        index = PassageIndex(tmp_path_factory.mktemp("index") / "i", vectors)
        for part in parts:
            index.update("t", "a", {(at, at): outputs[at, at] for at in part})
        fill(index)
        hits = [(hit.text, hit.start_ns) for hit in index.search("train", 50)]
        index.close()
        return hits

    assert all_of(order[:cut], order[cut:]) == all_of(list(range(6)))


def test_what_was_seen_is_found_by_what_it_is(index: PassageIndex) -> None:
    path = (Sighting(3 * S, (0.1, 0.1, 0.1, 0.1)),)
    dog = TrackedObject(start_ns=3 * S, end_ns=9 * S, text="dog", track=4, path=path)
    event = Event(start_ns=5 * S, end_ns=5 * S, text="dog 4 enters the yard", what="enters", track=4, object="dog")
    index.update("tracks", "yard", {(0, 0): Tracks(observations=(dog,), num_tracks=4)})
    index.update("events", "yard", {(0, 0): Events(observations=(event,))})
    while index.fill():
        pass
    found = {each.text: each for each in index.search("dog", 10)}
    assert found["1 dog in the picture"].start_ns == 3 * S
    index.update("events of another job", "yard", {(0, 0): Events(observations=(event,))})
    assert [each.text for each in index.search("dog", 10)].count(event.text) == 1
    assert found["dog 4 enters the yard"].kind == "event"
    assert index.takes(Tracks)
    assert index.takes(Events)
    assert not index.takes(Objects)
