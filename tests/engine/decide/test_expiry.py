"""What goes where a stream is kept for less long, or takes less room, than the rest."""

from hypothesis import example, given
from hypothesis import strategies as st

from engine.decide.expiry import BLOCK_BYTES, BLOCK_NS, Tally

RECORDS = st.lists(st.tuples(st.integers(0, 3 * BLOCK_NS), st.integers(0, 2 * BLOCK_BYTES)), max_size=40)


def tally_of(records: list[tuple[int, int]]) -> tuple[Tally, list[tuple[int, int, int]]]:
    """Records by (nanoseconds after the one before, bytes), and each by sequence, time and bytes."""
    tally, at_ns, known = Tally(), 10**18, []
    for number, (after_ns, num_bytes) in enumerate(records, 1):
        at_ns += after_ns
        tally.note(3 * number, at_ns, num_bytes)
        known.append((3 * number, at_ns, num_bytes))
    return tally, known


@given(RECORDS, st.one_of(st.none(), st.floats(0, 60)), st.one_of(st.none(), st.integers(0, 20 * BLOCK_BYTES)))
@example([(0, BLOCK_BYTES), (1, 0)], 0.0, None)
def test_what_is_over_goes_and_nothing_else(
    records: list[tuple[int, int]], max_age_s: float | None, max_bytes: int | None
) -> None:
    tally, known = tally_of(records)
    now_ns = known[-1][1] if known else 10**18
    below = tally.cut(now_ns, max_age_s, max_bytes)
    left = [record for record in known if record[0] >= below]
    gone = [record for record in known if record[0] < below]
    assert tally.num_bytes == sum(record[2] for record in left)
    since_ns = None if max_age_s is None else now_ns - int(max_age_s * 1e9)  # a float does not tell two ns apart
    if since_ns is not None:  # to a block
        assert all(record[1] >= since_ns - BLOCK_NS for record in left)
    if max_bytes is not None:
        assert tally.num_bytes <= max(max_bytes, 3 * BLOCK_BYTES)  # of the newest block, one record may be over it
    if gone and (since_ns is None or gone[-1][1] >= since_ns):  # then for want of room
        assert max_bytes is not None
        assert sum(record[2] for record in left) + 3 * BLOCK_BYTES > max_bytes
    assert tally.cut(now_ns, max_age_s, max_bytes) == 0


def test_without_bounds_nothing_goes() -> None:
    tally, _ = tally_of([(BLOCK_NS, BLOCK_BYTES)] * 10)
    assert tally.cut(10**19, None, None) == 0
    assert tally.num_bytes == 10 * BLOCK_BYTES


def test_the_newest_is_left_to_work_on_however_large_it_is() -> None:
    tally, known = tally_of([(BLOCK_NS, 100 * BLOCK_BYTES)] * 3)
    assert tally.cut(known[-1][1], None, BLOCK_BYTES) == known[1][0] + 1
    assert tally.num_bytes == 100 * BLOCK_BYTES


def test_what_is_told_again_is_counted_once() -> None:
    tally = Tally()
    for seq in (1, 2, 2, 1, 3):
        tally.note(seq, 10**18, 7)
    assert (tally.num_bytes, tally.last_seq) == (21, 3)
