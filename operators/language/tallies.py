"""Tallies: what follows from what was seen, said in words, so that a question can be answered by it: how many of what
there were and did what, and when each came and went. Pure.

Of tracks: how many of a class there were in all and at once, and, of up to MAX_EACH of them, when each comes into the
picture and leaves it. Of events: how many did the same, whichever number they have, and in whichever direction. Each
says how surely it was seen, the mean of what it counts.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from operators.seen import Event, TrackedObject
from streams.records import Observation

MAX_EACH = 100  # of a class: of more nobody wants to hear by number
PLURALS = {
    "person": "people",
    "bus": "buses",
    "sheep": "sheep",
    "mouse": "mice",
    "knife": "knives",
    "skis": "skis",
    "scissors": "scissors",
}
VERBS = {"enters": "enter", "leaves": "leave", "stays": "stay", "crosses": "cross"}
KIND = "count"
APART_S = 10.0

_DIRECTION = re.compile(r" to the (?:left|right)$")


def tallies(tracks: Iterable[TrackedObject], events: Iterable[Event]) -> list[tuple[str, Observation]]:
    """Statements, each with its kind of evidence."""
    return [*_of_tracks(tracks), *_of_events(events)]


def appearances(tracks: Iterable[TrackedObject]) -> list[Observation]:
    """When objects of a class were in the picture, for somebody who looks for one: one statement for each stretch in
    which at least one was, not interrupted for longer than APART_S, with how many there were of its tracks."""
    by_class: dict[str, list[TrackedObject]] = defaultdict(list)
    for track in tracks:
        by_class[track.text].append(track)
    found: list[Observation] = []
    for name, some in sorted(by_class.items()):
        open_: list[TrackedObject] = []
        last_ns = 0
        for track in sorted(some, key=lambda each: (each.start_ns, each.end_ns, each.track)):
            if open_ and track.start_ns - last_ns > APART_S * 1e9:
                found.append(_appearance(name, open_))
                open_, last_ns = [], 0
            open_.append(track)
            last_ns = max(last_ns, track.end_ns)
        found.append(_appearance(name, open_))
    return found


def _appearance(name: str, some: Sequence[TrackedObject]) -> Observation:
    num = len({each.track for each in some})
    return _over(f"{num} {plural(name, num)} in the picture", some)


def plural(name: str, num: int) -> str:
    if num == 1:
        return name
    if name in PLURALS:
        return PLURALS[name]
    return name + ("es" if name.endswith(("s", "ch", "sh", "x")) else "s")


def _of_tracks(tracks: Iterable[TrackedObject]) -> list[tuple[str, Observation]]:
    by_class: dict[str, dict[int, list[TrackedObject]]] = defaultdict(lambda: defaultdict(list))
    for track in tracks:
        by_class[track.text][track.track].append(track)
    found: list[tuple[str, Observation]] = []
    for name, each in sorted(by_class.items()):
        num, at_once = len(each), _most_at_once(each)
        verb = "is" if num == 1 else "are"
        text = f"There {verb} {num} {plural(name, num)} in all, at most {at_once} {plural(name, at_once)} at once"
        found.append((KIND, _over(text, [part for parts in each.values() for part in parts])))
        if num <= MAX_EACH:
            for number, parts in sorted(each.items()):
                found += _comes_and_goes(name if num == 1 else f"{name} {number}", parts)
    return found


def _comes_and_goes(who: str, parts: Sequence[TrackedObject]) -> list[tuple[str, Observation]]:
    sure = sum(part.confidence for part in parts) / len(parts)
    first, last = min(part.start_ns for part in parts), max(part.end_ns for part in parts)
    return [
        ("track", Observation(start_ns=at_ns, end_ns=at_ns, text=f"The {who} {does}", confidence=round(sure, 4)))
        for at_ns, does in ((first, "comes into the picture, appears"), (last, "leaves the picture, was last seen"))
    ]


def _most_at_once(tracks: Mapping[int, Sequence[TrackedObject]]) -> int:
    """Of the moments that were looked at."""
    seen: dict[int, set[int]] = defaultdict(set)
    for number, parts in tracks.items():
        for part in parts:
            for sighting in part.path:
                seen[sighting.at_ns].add(number)
    return max(map(len, seen.values()), default=0)


def _of_events(events: Iterable[Event]) -> list[tuple[str, Observation]]:
    alike: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        does = event.text.removeprefix(f"{event.object} {event.track} ")
        if does == event.text:
            continue  # written by somebody else
        alike[event.object, does].append(event)
        without = _DIRECTION.sub("", does)
        if without != does:
            alike[event.object, without].append(event)
    found: list[tuple[str, Observation]] = []
    for (name, does), some in sorted(alike.items()):
        num = len({event.track for event in some})
        verb, _, rest = does.partition(" ")
        done = verb if num == 1 else VERBS.get(verb, verb)
        found.append((KIND, _over(f"{num} {plural(name, num)} {done} {rest}", some)))
    return found


def _over(text: str, some: Sequence[Observation]) -> Observation:
    """A statement about all of these."""
    return Observation(
        start_ns=min(each.start_ns for each in some),
        end_ns=max(each.end_ns for each in some),
        text=text,
        confidence=round(sum(each.confidence for each in some) / len(some), 4),
    )
