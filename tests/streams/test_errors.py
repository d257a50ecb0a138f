"""An error is one line, whatever it repeats."""

import pytest

from streams.errors import MAX_LINE, LinkError, Malformed, PenstockError, Permanent, Transient, UserError
from streams.wire.link import Refused


@pytest.mark.parametrize("kind", [PenstockError, UserError, Transient, Permanent, Malformed, LinkError])
def test_a_message_is_one_line_of_bounded_length(kind: type[PenstockError]) -> None:
    assert str(kind("a\nb\r\nc\u2028d")) == "a b c d"
    assert len(str(kind("x" * 10**6))) == MAX_LINE + 3
    assert str(kind()) == ""


def test_a_refusal_keeps_its_code() -> None:
    error = Refused("no\nroom", 10047)
    assert (str(error), error.code) == ("no room", 10047)
