"""Good TOML, and how it is spoilt: lines moved, values that are none, what is nested or long beyond sense."""

from collections.abc import Callable
from random import Random

import bad_making as making
from measure import ROOT

WORKFLOW_TOML = b"""name = "w"
[stages.read]
capability = "bad_read"
inputs = { media = "media" }
params = { weight = 3 }
[stages.answer]
capability = "bad_answer"
inputs = { evidence = ["read"] }
params = { question = "$ask" } # once for each
"""
CONFIG_TOML = (
    (ROOT / "examples" / "penstock.toml").read_bytes()
    + b"""
num_replicas = 1
[streams.door]
url = "rtsp://user:secret@camera.example/1"
gop_s = 2.0
[jobs.words]
stream = "door"
workflow = "w.toml"
webhook = "https://example.org/answers"
"""
)
SNIPPETS = (
    *(b"x = " + b"9" * 5000, b"x = -" + b"9" * 400, b"x = 0x" + b"f" * 5000, b"x = 1e400", b"x = nan", b"x = -inf"),
    *(b"x = " + b"[" * 500 + b"]" * 500, b"x = " + b"{a=" * 300 + b"1" + b"}" * 300, b"x." * 2000 + b"x = 1"),
    *(
        b"[" + b"a." * 5000 + b"a]",
        b"[[stages]]",
        b"[stages.media]",
        b"[stages.'']",
        b'[stages."a\\nb"]',
        b"[stages.read]",
    ),
    *(b"x = 1979-05-27T07:32:00Z", b"x = 9999-12-31", b"x = 00:00:00", b"x = 1979-05-27T07:32:00.999999999+23:59"),
    *(
        b'"' + b"k" * 100_000 + b'" = 1',
        b'"\\u0000" = 1',
        b'"\\ud800" = 1',
        b"x = '\x1b[2J'",
        b'x = "\x00"',
        b"\xff\xfe",
    ),
    *(b"= 1", b"x", b"[", b"]", b"x = '''", b'x = """\\', b"# \x07", b"\r", b"\xef\xbb\xbf", b"a = {b = 1, b = 2}"),
)
LITERALS = (
    *(
        b"1",
        b"-1",
        b"0",
        b"9" * 5000,
        b"1" + b"0" * 30,
        b"nan",
        b"inf",
        b"-inf",
        b"1e308",
        b"5e-324",
        b"true",
        b"[]",
        b"{}",
    ),
    *(
        b"1979-05-27",
        b"07:32:00",
        b"1979-05-27T07:32:00Z",
        b'""',
        b'"\\u0000"',
        b'"a\\u0000b"',
        b'"a\\nb"',
        b'"\\u202e"',
    ),
    *(b'"' + b"a" * 300 + b'"', b'"' + b"a" * 100_000 + b'"', b"[" * 400 + b"]" * 400, b"[[1], ['a'], {a = 1}]"),
    *(
        b'["$ask", "$ask"]',
        b'"$ask"',
        b'"media"',
        b'["media", "read", "read"]',
        b'"answer"',
        b'"http://["',
        b'"fe80::%"',
    ),
)


def spoilt_toml(*good: bytes) -> Callable[[Random], bytes]:
    def make(chance: Random) -> bytes:
        said = chance.choice(good)
        for _ in range(chance.choice((1, 1, 2, 3))):
            said = _edited(chance, said)
        return said

    return make


def _edited(chance: Random, said: bytes) -> bytes:
    lines = said.split(b"\n")
    given = [at for at, line in enumerate(lines) if b"= " in line]  # values
    at = chance.choice(given) if given and chance.random() < 0.6 else chance.randrange(len(lines))
    name, equals, _ = lines[at].partition(b"= ")
    match chance.randrange(10):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, chance.choice(lines))
        case 2 | 3:
            lines.insert(at, chance.choice(SNIPPETS))
        case 4 | 5 | 6 if equals:
            lines[at] = name + equals + chance.choice(LITERALS)
        case 7 if equals:
            lines[at] = (
                making.text(chance, name.decode(errors="replace")).encode("utf-8", "replace")
                + equals
                + chance.choice(LITERALS)
            )
        case 8:
            return making.nested(chance, said, b"[", b"]")
        case _:
            return making.data(chance, said)
    return b"\n".join(lines)
