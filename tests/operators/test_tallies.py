"""What follows from what was seen, said in words; and questions that are answered by it."""

from operators.language.quoting import Quoting
from operators.language.tallies import MAX_EACH, appearances, plural, tallies
from operators.seen import Event, Events, Sighting, TrackedObject, Tracks
from penstock.testing import loaded, run

S = 10**9
BOX = (0.1, 0.1, 0.1, 0.1)


def track(number: int, name: str, first_s: int, last_s: int) -> TrackedObject:
    path = tuple(Sighting(at * S, BOX) for at in range(first_s, last_s + 1))
    return TrackedObject(start_ns=first_s * S, end_ns=last_s * S, text=name, confidence=0.8, track=number, path=path)


def event(number: int, name: str, at_s: int, does: str) -> Event:
    text = f"{name} {number} {does}"
    return Event(start_ns=at_s * S, end_ns=at_s * S, text=text, track=number, object=name, what=does.split()[0])


def said(tracks: list[TrackedObject], events: list[Event]) -> list[str]:
    return [each.text for _, each in tallies(tracks, events)]


def test_each_is_counted_once_over_segments() -> None:
    seen = [track(1, "person", 0, 4), track(1, "person", 5, 9), track(2, "person", 8, 12), track(7, "bus", 3, 4)]
    assert said(seen, []) == [
        "There is 1 bus in all, at most 1 bus at once",
        "The bus comes into the picture, appears",
        "The bus leaves the picture, was last seen",
        "There are 2 people in all, at most 2 people at once",
        "The person 1 comes into the picture, appears",
        "The person 1 leaves the picture, was last seen",
        "The person 2 comes into the picture, appears",
        "The person 2 leaves the picture, was last seen",
    ]
    by_text = {each.text: each for _, each in tallies(seen, [])}
    assert by_text["The person 1 leaves the picture, was last seen"].start_ns == 9 * S
    assert by_text["There are 2 people in all, at most 2 people at once"].end_ns == 12 * S


def test_of_a_crowd_nobody_is_told_by_number() -> None:
    crowd = [track(number, "person", number, number + 1) for number in range(MAX_EACH + 1)]
    assert said(crowd, []) == [f"There are {MAX_EACH + 1} people in all, at most 2 people at once"]


def test_events_of_a_kind_are_counted_by_who_did_it() -> None:
    happened = [
        event(1, "person", 1, "crosses the middle to the right"),
        event(1, "person", 5, "crosses the middle to the left"),
        event(2, "person", 6, "crosses the middle to the left"),
        event(3, "car", 6, "enters the yard"),
        event(4, "person", 7, "stays in the yard for over 30 s"),
    ]
    assert said([], happened) == [
        "1 car enters the yard",
        "2 people cross the middle",
        "2 people cross the middle to the left",
        "1 person crosses the middle to the right",
        "1 person stays in the yard for over 30 s",
    ]


def test_who_comes_back_soon_was_there_all_the_time() -> None:
    seen = [track(2, "dog", 9, 12), track(1, "dog", 0, 4), track(1, "dog", 40, 41), track(3, "car", 0, 1)]
    told = [(each.text, each.start_ns // S, each.end_ns // S) for each in appearances(seen)]
    assert told == [
        ("1 car in the picture", 0, 1),
        ("2 dogs in the picture", 0, 12),
        ("1 dog in the picture", 40, 41),
    ]


def test_plurals() -> None:
    words = ["person", "bus", "car", "bench", "sheep", "wine glass"]
    assert [plural(word, 2) for word in words] == ["people", "buses", "cars", "benches", "sheep", "wine glasses"]
    assert plural("bus", 1) == "bus"


def test_how_many_and_when_are_answered() -> None:
    tracks = [Tracks(observations=(track(1, "person", 0, 4), track(2, "person", 2, 4), track(7, "bus", 1, 3)))]
    events = [Events(observations=tuple(event(n, "person", n, "crosses the line to the left") for n in (1, 2)))]

    def answer(question: str) -> tuple[str, int]:
        (reply,) = run(loaded(Quoting), {"evidence": [tracks, events]}, params={"question": question})
        return reply.answer, reply.evidence[0].start_ns // S if reply.evidence else -1

    assert answer("How many people are there?")[0].startswith("There are 2 people in all")
    assert answer("How many people cross the line?")[0].startswith("2 people cross the line")
    assert answer("When does the bus leave the picture?") == ("The bus leaves the picture, was last seen", 3)
    assert answer("What does a coffee cost?")[0] == "not in the video"
