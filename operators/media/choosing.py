"""Which pictures are taken, and what has to be decoded for them. Pure.

Pictures. With an interval, one for each multiple of it in media time: the first at or after it. With a slack as well, a
keyframe that comes no later than that behind the multiple is taken in its place: it can be decoded alone. For the next
one, the multiples behind what was taken count. Or those that are seen at moments: the last at or before each.

Packets. A *group* is a keyframe and what is decoded behind it. For a picture its group is needed, from its keyframe to
itself, but for packets that no picture refers to; where it is shown before its keyframe (a leading picture), so is the
group before. What lies behind the last picture that is wanted, and groups in which none is, are not decoded.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from streams.records import Packet


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture that a segment owns: when it is shown, in media time, and whether it can be decoded alone."""

    at_ns: int
    is_keyframe: bool


def chosen(pictures: Sequence[Shown], first_ns: int, interval_ns: int, slack_ns: int = 0) -> list[int]:
    """Times of the pictures that are taken. `pictures` in order of time; `first_ns`: the first multiple that counts."""
    if interval_ns <= 0:
        return [picture.at_ns for picture in pictures]
    taken: list[int] = []
    keys = iter([picture.at_ns for picture in pictures if picture.is_keyframe] if slack_ns > 0 else [])
    key_ns = next(keys, None)
    next_ns = first_ns
    for picture in pictures:
        if picture.at_ns < next_ns:
            continue
        at_ns = picture.at_ns
        while key_ns is not None and key_ns < at_ns:
            key_ns = next(keys, None)
        if key_ns is not None and key_ns <= next_ns + slack_ns:
            at_ns = key_ns
        taken.append(at_ns)
        next_ns = (at_ns // interval_ns + 1) * interval_ns
    return taken


def seen_at(pictures: Sequence[Shown], moments_ns: Iterable[int]) -> list[int]:
    """Times of the pictures that are seen at these moments: the last at or before each, or the first of all. `pictures`
    in order of time."""
    times = [picture.at_ns for picture in pictures]
    return sorted({times[max(0, bisect_right(times, at_ns) - 1)] for at_ns in moments_ns}) if times else []


def runs_for(packets: Sequence[Packet], unreferenced: Sequence[bool], wanted: Collection[int]) -> list[list[int]]:
    """What has to be decoded for the pictures of these packets (by place in `packets`): runs of packets, each decoded
    from a keyframe on with nothing of what was decoded before."""
    begins = [0, *(at for at, packet in enumerate(packets) if packet.keyframe and at)]
    ends = [*begins[1:], len(packets)]
    until: dict[int, int] = {}  # by group, up to which packet it is needed
    for group, places in _by_group(sorted(wanted), begins, ends).items():
        until[group] = max(until.get(group, 0), places[-1] + 1)
        if group and any(packets[place].pts < packets[begins[group]].pts for place in places):
            until[group - 1] = ends[group - 1]
    runs: list[list[int]] = []
    for group in sorted(until):
        if until.get(group - 1) != ends[group - 1]:  # it does not follow on a group that is decoded to its end
            runs.append([])
        needed = range(begins[group], until[group])
        runs[-1] += [at for at in needed if at in wanted or not unreferenced[at]]
    return runs


def _by_group(places: Iterable[int], begins: Sequence[int], ends: Sequence[int]) -> Mapping[int, list[int]]:
    groups = enumerate(ends)
    group, end = next(groups)

    def group_of(place: int) -> int:
        nonlocal group, end
        while place >= end:
            group, end = next(groups)
        return group

    return {each: list(some) for each, some in groupby(places, group_of)}
