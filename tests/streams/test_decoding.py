"""Decoding is total: whatever the bytes, a value or Malformed."""

import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sampled_records import MEDIA, RESULT, RESULT_MESSAGES

from engine.run.registry import NodeStatus
from engine.spec.jobs import JobSpec
from engine.spec.stream import StreamSpec
from streams.decoding import converted, decoded, from_json, seconds, shown, whole_number
from streams.errors import Malformed, PenstockError
from streams.records import Gap, Reply, Result, decode_media, decode_output, decode_result, encode

DEEP = 100_000
OUTPUTS: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
ANYTHING: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder()
KINDS: tuple[type, ...] = (JobSpec, StreamSpec, NodeStatus, Gap, dict)


def gives(decode: Callable[[], object]) -> object:
    """What it decodes to, or None; anything but Malformed is the test's failure."""
    try:
        return decode()
    except Malformed as error:
        assert isinstance(error, PenstockError)
        assert len(str(error)) <= 250
        assert "\n" not in str(error)
        return None


def try_everything(data: bytes) -> None:
    gives(lambda: decode_media(data))
    found = gives(lambda: decode_result(data))
    if isinstance(found, Result):
        gives(lambda: decode_output(OUTPUTS, found))
    gives(lambda: decoded(ANYTHING, data))
    for kind in KINDS:
        gives(lambda kind=kind: from_json(data, kind))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try_everything(data)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A record, of which a few bytes are others, some are gone and some are new."""
    valid = draw(st.one_of(MEDIA, RESULT_MESSAGES))
    data = bytearray(draw(st.sampled_from([encode, msgspec.json.encode]))(valid))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["other", "gone", "new"])):
            case "other":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "gone":
                del data[at : at + draw(st.integers(1, 8))]
            case "new":
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@given(mutations())
def test_any_mutation_of_a_record(data: bytes) -> None:
    try_everything(data)


BAD = {
    "deep in msgpack": b"\x82\xa4type\xa3end\xa1x" + b"\x91" * DEEP + b"\xc0",
    "deep maps in msgpack": b"\x81\xa1x" * DEEP + b"\xc0",
    "a deep output": encode({"type": "result", "stage": "s", "stream": "s", "first": 0, "last": 0})[:-1] + b"\x00",
    "deep in JSON": b'{"x":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field nobody knows": b'{"id":"j","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "invalid UTF-8": b'{"id":"\xff\xfe","name":"\xff"}',
    "invalid UTF-8 in msgpack": b"\x82\xa4type\xa3gap\xa5stage\xa2\xff\xfe",
    "5,000 digits": b'{"first":' + b"9" * 5000 + b"}",
    "a huge exponent": b'{"segment_s":1e999999}',
    "4 billion items that are not there": b"\xdd\xff\xff\xff\xff",
    "4 GB that are not there": b"\xc6\xff\xff\xff\xff",
    "half a surrogate": b'{"id":"\\ud800 and more of it"}',
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_known_to_be_bad(data: bytes) -> None:
    try_everything(data)
    for kind in (JobSpec, StreamSpec, NodeStatus, Gap):
        with pytest.raises(Malformed):
            from_json(data, kind)


def test_a_deep_output_is_malformed() -> None:
    deep = Result(stage="s", stream="s", first=0, last=0, output=msgspec.Raw(b"\x91" * DEEP + b"\xc0"))
    with pytest.raises(Malformed):
        decode_output(OUTPUTS, deep)
    with pytest.raises(Malformed):
        decode_result(encode(deep)[:-1] + b"\x91" * DEEP)
    assert decode_output(OUTPUTS, RESULT).answer == "a"


def test_it_is_total_wherever_it_is_called_from() -> None:
    """Close to Python's limit of recursion, too."""

    def down(levels: int) -> object:
        return down(levels - 1) if levels else gives(lambda: from_json(b"[" * 500 + b"]" * 500, list))

    down(sys.getrecursionlimit() - 120)


@given(st.recursive(st.none() | st.floats() | st.integers() | st.text(), lambda some: st.dictionaries(st.text(), some)))
def test_conversion_is_total(value: Any) -> None:
    for kind in KINDS:
        gives(lambda kind=kind: converted(value, kind))


@example("\U000114da" * 50)
@given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9]{1,30}")))
def test_numbers_are_total(text: str) -> None:
    number = gives(lambda: whole_number(text, 10**9))
    assert number is None or (isinstance(number, int) and 0 <= number <= 10**9)
    length_s = gives(lambda: seconds(text))
    assert length_s is None or (isinstance(length_s, float) and math.isfinite(length_s) and length_s >= 0)


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "+1", "1_0", " 1", "", "\u0663", "1.0", "9223372036854775808"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(Malformed):
        whole_number(text)
    assert whole_number("9223372036854775807") == 2**63 - 1


@pytest.mark.parametrize("text", ["inf", "nan", "-1", "1e9", "1e999", "9" * 5000, "", "s", "1ss", "0x1", "1_0"])
def test_what_are_no_seconds(text: str) -> None:
    with pytest.raises(Malformed):
        seconds(text)
    assert (seconds("2.5s"), seconds("0"), seconds("10s")) == (2.5, 0.0, 10.0)


def test_what_is_shown_is_short() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 10**6)) < 50
