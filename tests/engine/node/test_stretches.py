"""Moments as people write them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.node.stretches import parse_moment
from streams.errors import UserError

NOW_NS = 1_800_000_000_000_000_000


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", None),
        ("-10m", ("wall", NOW_NS - 600 * 10**9)),
        ("-1.5h", ("wall", NOW_NS - 5400 * 10**9)),
        ("1:05", ("media", 65 * 10**9)),
        ("1:00:05.5", ("media", 3_605_500_000_000)),
        ("65s", ("media", 65 * 10**9)),
        ("1970-01-01T00:01:00Z", ("wall", 60 * 10**9)),
        ("1970-01-01T01:01:00+01:00", ("wall", 60 * 10**9)),
    ],
)
def test_moments(text: str, moment: tuple[str, int] | None) -> None:
    assert parse_moment(text, NOW_NS) == moment


@given(st.text(max_size=30) | st.from_regex(r"-?[0-9:.TZ+]{0,40}", fullmatch=True))
@example("9" * 5000 + ":00:00")
@example("-" + "9" * 400 + "d")
@example("-" + "9" * 5000)
@example("9" * 5000)
@example("0001-01-01T00:00:00+23:59")
@example("9999-12-31T23:59:59-23:59")
@example("٣:٠٥")
def test_whatever_is_written_is_a_moment_or_one_line(text: str) -> None:
    try:
        moment = parse_moment(text, NOW_NS)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 300
        return
    assert moment is None or (moment[0] in ("media", "wall") and isinstance(moment[1], int))
