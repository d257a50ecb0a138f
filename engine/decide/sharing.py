"""Sharing: what of what a new job asks of a stage is asked for already, and what of it is stored. Pure."""

from collections.abc import Collection, Sequence

from engine.decide.running_graph import RunningStage
from engine.spec.jobs import Span
from streams.subjects import Key


def is_covered(running: RunningStage | None, spans: Sequence[Span]) -> bool:
    """Whether jobs that run already ask for all of it."""
    return running is not None and all(any(_is_inside(span, wide) for wide in running.spans) for span in spans)


def lacks(spans: Sequence[Span], stored: Collection[Key], num_segments: int | None, *, reduces: bool) -> bool:
    """Whether anything asked for is not stored. Of a stage that reduces, each span is one output."""
    for span in spans:
        last = span.last
        if last is None:
            if num_segments is None:
                return True
            last = num_segments - 1
        if reduces:
            num_stored, num_wanted = int(Key(span.first, last) in stored), 1
        else:  # counted among what is stored: a range may be said to be as long as anybody likes
            num_stored = sum(key.first == key.last and span.first <= key.first <= last for key in stored)
            num_wanted = last - span.first + 1
        if num_stored < num_wanted:
            return True
    return False


def _is_inside(span: Span, wide: Span) -> bool:
    if span.first < wide.first:
        return False
    return wide.last is None or (span.last is not None and span.last <= wide.last)
