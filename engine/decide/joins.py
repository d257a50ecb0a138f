"""The join rule, one for every scope. Pure: what has arrived in, what is to be computed out.

An arrival names the outputs it may complete (`outputs_of`). An output needs certain inputs (`needs`); it is computed
when all are stored. Among the arrivals of one output exactly one must act, or work is done twice: the one stored last.
What is stored before it is visible to it, so it always sees the set complete. Sequences order only what one JetStream
stream holds, so an output with inputs from two of them (media and results) has a last arrival in each; both may act,
and the write-once ledger refuses the second result.
"""

from collections.abc import Iterable, Sequence

from engine.spec.jobs import Span
from engine.spec.operator import Fold, Map, PerRange, Reduce, Scope, Window
from streams.subjects import MAX_INDEX, Key


def outputs_of(scope: Scope, index: int, num_segments: int | None) -> list[Key]:
    """The outputs that input `index` contributes to, as far as the stream is known to reach."""
    match scope:
        case Map(before, after):
            first, last = max(0, index - after), index + before
        case Fold():
            first, last = index, index
        case Window(size):
            first, last = index, index + size - 1
        case Reduce():
            return outputs_of_end(scope, num_segments) if num_segments is not None else []
        case PerRange():
            return []  # a segment belongs to none: a range does
    if num_segments is not None:
        last = min(last, num_segments - 1)
    return [Key.of(output) for output in range(first, last + 1)]


def outputs_of_end(scope: Scope, num_segments: int) -> list[Key]:
    """The outputs that knowing the stream's end contributes to: those whose inputs it bounds."""
    if num_segments == 0:
        return []
    match scope:
        case Map(_, after):
            return [Key.of(output) for output in range(max(0, num_segments - after), num_segments)]
        case Reduce():
            return [Key(0, num_segments - 1)]
    return []


def outputs_of_own(scope: Scope, key: Key, num_segments: int | None) -> list[Key]:
    """The outputs that the stage's own output contributes to: the next one of a fold."""
    following = key.last + 1
    if isinstance(scope, Fold) and (num_segments is None or following < num_segments):
        return [Key.of(following)]
    return []


def needs(scope: Scope, key: Key, num_segments: int | None) -> range:
    """The inputs that an output needs of each source. Beyond a stream's end nothing is needed, and an output there does
    not exist: it needs nothing at all. While the end is not known, the view is needed in full."""
    if num_segments is not None and key.first >= num_segments:
        return range(0)
    match scope:
        case Map(before, after):
            first, last = max(0, key.first - before), key.last + after
        case Fold():
            first, last = key.first, key.last
        case Window(size):
            first, last = max(0, key.first - size + 1), key.last
        case Reduce() | PerRange():
            first, last = key.first, key.last
    if num_segments is not None:
        last = min(last, num_segments - 1)
    return range(first, last + 1)


def width(scope: Scope) -> int:
    """How many segments one output looks at; of a range, one by one."""
    return len(needs(scope, Key.of(MAX_INDEX), None))


def needs_end(scope: Scope) -> bool:
    """Whether the scope's outputs depend on where the stream ends."""
    return isinstance(scope, Reduce) or (isinstance(scope, Map) and scope.after > 0)


def is_bounded(scope: Scope, key: Key, spans: Iterable[Span], num_segments: int) -> bool:
    """Whether the stream's end is one of an output's inputs. Of a scope that reduces, `spans` are the ranges asked
    for."""
    if isinstance(scope, Reduce):
        return key.last >= num_segments or not any((span.first, span.last) == key for span in spans)
    return isinstance(scope, Map) and key.last + scope.after >= num_segments


def acts(arrival_seq: int, seqs_in_its_stream: Iterable[int]) -> bool:
    """Whether this arrival is the one to compute a complete output: none of the output's inputs in the same JetStream
    stream was stored after it."""
    return all(seq <= arrival_seq for seq in seqs_in_its_stream)


def awaited(sources: Sequence[str], ancestors: dict[str, frozenset[str]]) -> list[str]:
    """The sources whose arrival a stage must await: not those that another source was itself made from, because what
    stands before a result in the graph was stored before it. `ancestors[s]` are the sources that `s` was made from,
    segment by segment, with the same or a wider view."""
    return [
        s for s in dict.fromkeys(sources) if not any(s in ancestors.get(other, ()) for other in sources if other != s)
    ]
