"""The codec: round trips, records from newer versions, and bytes that are no record."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled_records import COUNTS, MEDIA, RESULT, RESULT_MESSAGES, SEGMENT, WORDS

from streams import records
from streams.errors import Malformed
from streams.records import (
    DeadLetter,
    EndOfStream,
    Gap,
    Packet,
    Reply,
    Result,
    Segment,
    decode_media,
    decode_result,
    encode,
)


@given(MEDIA)
def test_media_messages_come_back_as_they_were(record: records.MediaMessage) -> None:
    assert decode_media(encode(record)) == record


@given(RESULT_MESSAGES)
def test_result_messages_come_back_as_they_were(record: records.ResultMessage) -> None:
    assert decode_result(encode(record)) == record


@given(MEDIA)
def test_equal_records_give_equal_bytes(record: records.MediaMessage) -> None:
    assert encode(decode_media(encode(record))) == encode(record)


@given(st.dictionaries(WORDS, COUNTS))
def test_the_order_of_keys_does_not_show(content: dict[str, int]) -> None:
    assert encode(content) == encode(dict(reversed(content.items())))


def test_defaults_are_not_sent() -> None:
    assert msgspec.msgpack.decode(encode(EndOfStream(stream="s", num_segments=2))) == {
        "type": "end",
        "stream": "s",
        "num_segments": 2,
    }


def newer(content: Any) -> Any:
    """What a later version might send: unknown fields in every map, nested ones among them; a higher version."""
    match content:
        case dict():
            later = {"zeal": {"deep": [1, {"er": None}]}, "": b"\x00", "also": [[1.5], "x"]}
            return {**{key: newer(value) for key, value in content.items()}, **later}
        case list():
            return [newer(item) for item in content]
    return content


@pytest.mark.parametrize(
    "record",
    [
        SEGMENT,
        EndOfStream(stream="s", num_segments=4, duration_ns=7, flaws=("cut short",)),
        Gap(stage="media", stream="s", first=1, last=1, cause="source_lost", detail="gone"),
    ],
)
def test_a_media_record_of_a_newer_version_is_read(record: records.MediaMessage) -> None:
    content = newer(msgspec.msgpack.decode(encode(record))) | {"version": 99}
    if "packets" in content:
        content["packets"] = [[*packet, *[-1] * (7 - len(packet)), {"later": 1}, 2] for packet in content["packets"]]
    assert decode_media(encode(content)) == msgspec.structs.replace(record, version=99)


@pytest.mark.parametrize("record", [RESULT, Gap(stage="id", stream="s", first=0, last=2, cause="late")])
def test_a_result_record_of_a_newer_version_is_read(record: records.ResultMessage) -> None:
    content = msgspec.msgpack.decode(encode(record))
    output = content.pop("output", None)
    content = newer(content) | {"version": 99} | ({"output": newer(output)} if output else {})
    decoded = decode_result(encode(content))
    if isinstance(record, Result):
        assert isinstance(decoded, Result)
        assert msgspec.msgpack.decode(decoded.output, type=Reply) == Reply(question="q", answer="a", confidence=0.5)
        assert msgspec.structs.replace(decoded, output=record.output) == msgspec.structs.replace(record, version=99)
    else:
        assert decoded == msgspec.structs.replace(record, version=99)


def test_what_an_older_version_did_not_send_has_its_default() -> None:
    packet = [0, 1, 2, 3, True, b"x"]  # without its position
    old = {"type": "segment", "stream": "s", "index": 0, "start_ns": 0, "duration_ns": 1, "packets": [packet]}
    decoded = decode_media(msgspec.msgpack.encode(old))
    assert decoded == Segment(stream="s", index=0, start_ns=0, duration_ns=1, packets=(Packet(0, 1, 2, 3, True, b"x"),))


def test_every_truncation_is_refused() -> None:
    for data, decode in ((encode(SEGMENT), decode_media), (encode(RESULT), decode_result)):
        for length in range(len(data)):
            with pytest.raises(Malformed):
                decode(data[:length])


def test_damaged_bytes_give_a_record_or_a_decode_error() -> None:
    nested = b"\x82\xa4type\xa3end\xa1x" + b"\x91" * 100_000
    escaped: list[Exception] = []
    for data, decode in (
        *((data, decode_media) for data in [*flips(encode(SEGMENT)), nested]),
        *((data, decode_result) for data in [*flips(encode(RESULT)), nested]),
    ):
        try:
            decode(data)
        except Malformed:
            continue
        except Exception as error:
            escaped.append(error)
    assert escaped == []


def flips(data: bytes) -> list[bytes]:
    """`data` with each of its bits flipped."""
    return [
        data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :] for bit in range(8 * len(data))
    ]


@given(st.binary(max_size=60))
def test_noise_gives_only_decode_errors(data: bytes) -> None:
    for decode in (decode_media, decode_result):
        with pytest.raises(Malformed):
            decode(data)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "other", "stream": "s"},
        {"stream": "s", "num_segments": 1},
        {"type": "end", "stream": "s"},
        {"type": "end", "stream": 5, "num_segments": 1},
        {"type": "gap", "stage": "m", "stream": "s", "first": 0, "last": 0, "cause": "unheard of"},
        [],
        None,
    ],
)
def test_what_is_no_record_of_ours_is_refused(content: Any) -> None:
    with pytest.raises(Malformed):
        decode_media(msgspec.msgpack.encode(content))


def test_dead_letters_keep_their_cause() -> None:
    dead = DeadLetter(stage="id", stream="s", first=1, last=1, cause="unlucky", attempts=4)
    assert msgspec.msgpack.decode(encode(dead), type=DeadLetter) == dead
