"""Making inputs bad: good ones are changed a little, in their bytes or in what they say. What comes out follows from
the chance that is given alone."""

import json
import math
import re
import struct
from copy import deepcopy
from random import Random
from typing import Any

import msgspec

MAX_BYTES = 1 << 20
DEEP = 100_000

TEXTS = (
    *("", " ", "\t", "\x00", "a\x00b", "a\nb", "a\r\nb: c", "\x1b[2J\x1b]0;x\x07", "\u2028", "\u202eabc", "\ufeff"),
    *("\ud800", "\U0010ffff", "e\u0301", "\u0130", "\u0661\u0662", "\u00b2", "x" * 129, "x" * 300, "x" * 5000),
    *("media", "end", "$ask", "*", ">", "a.b", "a b", ".", "..", "../../etc/passwd", "/", "~", "-", "--", "%00", "%s"),
    *("{}", "{0.__class__}", "[red]x[/]", "[/]", "null", "true", "NaN", "Infinity", "-1", "0", "1e400", "9" * 5000),
    *("18446744073709551616", "9223372036854775807", "0x10", "1_000", "now", "-10m", "1:05", "9999-12-31T23:59:59Z"),
    *("0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "-999999999d", "http://[", "http://[::1", "http://a:b/"),
    *("http://\u2100/", "rtsp://[fe80::1%25x]:99999/", "udp://:1", "srt://h", "file://%00", "file:///" + "a" * 300),
    *(
        "device:/dev/video99",
        "device:alsa:x",
        "a" * 300,
        "/" + "a/" * 2500,
        "https://user:pass@host/path?x#y",
        "fe80::1%",
    ),
)
NUMBERS = (
    *(0, 1, -1, 2, 7, 127, 128, 255, 256, 1000, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 10**15, 10**15 + 1, 10**18),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), -(2**63) - 1, 10**30, -(10**30)),
    *(0.0, -0.0, 0.1, 0.5, 1.5, 1e-9, 5e-324, 1e15, 1e18, 1e300, 1.7976931348623157e308, math.nan, math.inf, -math.inf),
)
BYTES = (
    *(
        b"",
        b"\x00",
        b"\xff",
        b"\xff\xfe",
        b"\xc3",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\x00" * 4096,
        b"\xff" * 4096,
    ),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"),
    *(
        b"\xd9\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xcf" + b"\xff" * 8,
        b"\xcb\x7f\xf8" + b"\x00" * 6,
        b"\x81\xa4type\xc0",
    ),
    *(b"{}", b"[]", b"null", b'""', b'"\\ud800"', b'{"a":' * 40, b"[" * 500, b"1e999", b"-", b"9" * 5000, b"\x1b[2J"),
    *(b"\r\n", b"\n\n", b": ", b"\r\n\r\n", b"%", b"=", b"&", b"?", b"/../", b"\xef\xbb\xbf"),
)
_PLACES = re.compile(rb'"[^"\\]*"(?!\s*:)|[0-9]+')  # values
DEEPS = (
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b"\x91" * DEEP,
    b"\x81\xa1a" * DEEP,
)


def text(chance: Random, given: str = "") -> str:
    """A nasty text, or a given one made so."""
    match chance.randrange(8 if given else 2):
        case 0:
            return chance.choice(TEXTS)
        case 1:
            return "".join(chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) for _ in range(12))
        case 2:
            return given + chance.choice(TEXTS)
        case 3:
            return chance.choice(TEXTS) + given
        case 4:
            return given * chance.choice((2, 50))
        case 5:
            return given.swapcase()
    at = chance.randrange(len(given))
    return given[:at] + chance.choice((chance.choice(TEXTS)[:20], given[at:][::-1], "")) + given[at + 1 :]


def number(chance: Random, given: float = 0) -> float:
    match chance.randrange(4):
        case 0 if isinstance(given, int):
            return given + chance.choice((-1, 1, 2**31, -(2**31)))
        case 1:
            return -given
    return chance.choice(NUMBERS)


def anything(chance: Random) -> Any:
    """A value of any type that JSON has."""
    match chance.randrange(7):
        case 0:
            return None
        case 1:
            return chance.choice((True, False))
        case 2:
            return number(chance)
        case 3:
            return text(chance)
        case 4:
            return [anything(chance) for _ in range(chance.choice((0, 1, 3)))]
        case 5:
            return {text(chance): anything(chance) for _ in range(chance.choice((0, 1, 3)))}
    return [[[[[[]]]]]] if chance.random() < 0.5 else ["x"] * 2000


def value(chance: Random, good: Any) -> Any:
    """A tree of dicts and lists with one to three of its places changed."""
    tree = deepcopy(good)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        tree = _changed(chance, tree)
    return tree


def _changed(chance: Random, tree: Any) -> Any:
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.08:
        return _leaf(chance, tree)
    if isinstance(tree, dict):
        key = chance.choice(list(tree))
        match chance.randrange(10):
            case 0:
                del tree[key]
            case 1:
                tree[text(chance, str(key))] = tree.pop(key)
            case 2:
                tree[text(chance)] = anything(chance)
            case 3:
                tree[key] = deepcopy(tree[chance.choice(list(tree))])
            case _:
                tree[key] = _changed(chance, tree[key])
        return tree
    at = chance.randrange(len(tree))
    match chance.randrange(8):
        case 0:
            del tree[at]
        case 1:
            tree.insert(at, anything(chance))
        case 2:
            tree += deepcopy(tree) * chance.choice((1, 20))
        case 3:
            tree.reverse()
        case _:
            tree[at] = _changed(chance, tree[at])
    return tree


def _leaf(chance: Random, given: Any) -> Any:
    if chance.random() < 0.3:
        return anything(chance)
    if isinstance(given, bool) or given is None:
        return chance.choice((None, True, False, 0, 1, "true"))
    if isinstance(given, int | float):
        return number(chance, given)
    if isinstance(given, str):
        return text(chance, given)
    if isinstance(given, bytes):
        return data(chance, given)
    return anything(chance)


def data(chance: Random, good: bytes, others: bytes = b"") -> bytes:
    """Bytes with one to four changes: flipped, cut off, cut out, doubled, spliced, or something nasty put in."""
    made = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(9):
            case 0 | 1 | 2 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 3:
                del made[at:]
            case 4:
                del made[at : at + chance.choice((1, 4, 64))]
            case 5:
                made[at:at] = chance.choice(BYTES)
            case 6:
                made[at : at + 4] = struct.pack(
                    ">I", chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)))
                )
            case 7:
                made[at:at] = made[max(0, at - chance.choice((1, 16, 256))) : at]
            case 8 if others:
                made[at:] = others[chance.randrange(len(others)) :]
    return bytes(made[:MAX_BYTES])


def as_json(chance: Random, good: Any) -> bytes:
    """The JSON of a good value, made bad: what it says, how it is written, or all of it."""
    match chance.randrange(20):
        case 0:
            return chance.choice(BYTES)
        case 1 if chance.random() < 0.05:
            return chance.choice(DEEPS)
        case 2 | 3 | 4 | 5:
            return data(chance, written(good))
        case 6 if chance.random() < 0.5:
            return nested(chance, written(good), b"[", b"]")
    return written(value(chance, good))


def nested(chance: Random, good: bytes, opening: bytes, closing: bytes) -> bytes:
    """One of the quoted words of a text, or a number, in as many brackets as may just be read, or just not."""
    places = [found.span() for found in _PLACES.finditer(good)]
    if not places:
        return good
    first, last = chance.choice(places)
    num = chance.choice((40, 200, 320, 480, 700, 900, 950, 970, 985, 995, 1100))
    return good[:first] + opening * num + good[first:last] + closing * num + good[last:]


def written(tree: Any) -> bytes:
    """As JSON, with what JSON does not have (NaN, lone surrogates) as others write it."""
    return json.dumps(tree, ensure_ascii=True, default=repr).encode()


def as_msgpack(chance: Random, good: Any) -> bytes:
    match chance.randrange(20):
        case 0:
            return chance.choice(BYTES)
        case 1 if chance.random() < 0.05:
            return chance.choice(DEEPS)
        case 2 | 3 | 4 | 5 | 6 | 7:
            return data(chance, msgspec.msgpack.encode(good))
    try:
        return msgspec.msgpack.encode(value(chance, good))
    except (OverflowError, UnicodeEncodeError, TypeError):  # msgpack has no number so large, and no surrogate
        return data(chance, msgspec.msgpack.encode(good))
