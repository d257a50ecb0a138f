"""How much of what is labelled was found, worked out by hand."""

import pytest

from engine.spec.profile import Measured
from operators.heard import Speech, Transcript
from operators.judging import (
    METRICS,
    Labelled,
    LabelledFrame,
    LabelledObject,
    heard_rightly,
    overlap,
    read_rightly,
    seen_rightly,
)
from operators.seen import DetectedObject, Objects, ScreenText, TextLine

S = 10**9


def transcript(*texts: str) -> Transcript:
    return Transcript(observations=tuple(Speech(start_ns=0, end_ns=S, text=text) for text in texts))


def box(name: str, *at: float, start_ns: int = 0, sure: float = 0.9) -> DetectedObject:
    return DetectedObject(start_ns=start_ns, end_ns=start_ns, text=name, confidence=sure, box=at)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "heard", "right"),
    [
        ("the train leaves", ["The train", "leaves."], (3, 3)),
        ("the train leaves", ["the tram leaves"], (2, 3)),
        ("the train leaves", [], (0, 3)),
        ("one", ["one two three"], (-1, 1)),
        ("don't", ["don't"], (1, 1)),
    ],
)
def test_words_are_right_but_for_those_inserted_left_out_and_replaced(
    said: str, heard: list[str], right: tuple[int, int]
) -> None:
    assert heard_rightly(Labelled("a.wav", words=said), [transcript(each) for each in heard]) == right


def test_words_that_are_read_many_times_count_once() -> None:
    outputs = [ScreenText(observations=(TextLine(start_ns=0, end_ns=S, text="Platform 4 EXIT"),))] * 3
    labelled = Labelled("a.mp4", text=("Platform 4", "Way out"))
    assert read_rightly(labelled, outputs) == (4.0, 7.0)  # platform and 4, of 4 shown and 3 read
    assert read_rightly(labelled, []) == (0.0, 4.0)


def test_boxes_overlap_by_their_intersection_over_their_union() -> None:
    assert overlap((0, 0, 0.2, 0.2), (0, 0, 0.2, 0.2)) == 1.0
    assert overlap((0, 0, 0.2, 0.2), (0.1, 0, 0.2, 0.2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2)) == 0.0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_each_labelled_object_is_found_once_and_by_its_name() -> None:
    person = LabelledObject("person", (0.1, 0.1, 0.2, 0.4))
    labelled = Labelled("a.mp4", frames=(LabelledFrame(1.0, (person,)),))
    near = 1_100_000_000
    found = [
        box("person", 0.1, 0.1, 0.2, 0.4, start_ns=near),
        box("person", 0.1, 0.1, 0.2, 0.38, start_ns=near, sure=0.4),  # the same one again
        box("dog", 0.1, 0.1, 0.2, 0.4, start_ns=near),
        box("person", 0.1, 0.1, 0.2, 0.4, start_ns=3 * S),  # in another frame
    ]
    outputs = [Objects(observations=tuple(found), times_ns=(near, 3 * S))]
    assert seen_rightly(labelled, outputs) == (2.0, 4.0)  # one, of one labelled and three found
    assert seen_rightly(labelled, [Objects(times_ns=(2 * S,))]) == (0.0, 1.0)  # no frame was looked at then
    assert seen_rightly(labelled, []) == (0.0, 1.0)


def test_what_can_be_judged_says_which_label_it_needs() -> None:
    assert {metric.of for metric in METRICS.values()} <= set(Labelled.__struct_fields__)


# --- together ----------------------------------------------------------------------------------------------------


def test_items_count_by_their_length_and_the_interval_is_around_what_they_come_to() -> None:
    measured = Measured.of("m", [(9, 10), (1, 10), (80, 80)], "a set")
    assert measured.value == pytest.approx(0.9)
    assert measured.low < 0.9 < measured.high <= 1.0
    assert measured == Measured.of("m", [(9, 10), (1, 10), (80, 80)], "a set")


def test_of_one_item_and_of_none_there_is_no_interval() -> None:
    one = Measured.of("m", [(3, 4)], "a set")
    assert (one.value, one.low, one.high, one.num) == (0.75, 0.75, 0.75, 1)
    assert Measured.of("m", [], "a set").value == 0.0
    assert Measured.of("m", [(-5, 4)], "a set").value == 0.0


def test_the_interval_holds_what_is_true_about_as_often_as_it_says() -> None:
    """Of sets of 40 items that are each right with 0.8, nineteen of twenty intervals have 0.8 in them."""
    from random import Random

    chance = Random(5)
    held = 0
    for _ in range(60):
        scores = [(float(chance.random() < 0.8), 1.0) for _ in range(40)]
        measured = Measured.of("m", scores, "a set")
        held += measured.low <= 0.8 <= measured.high
    assert held >= 51
