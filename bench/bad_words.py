"""Bad command lines, thrown at `penstock` as a user's shell does: exit code 2 (4 where a server was asked for and is
not there), and exactly one line on stderr that says what would be right."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from random import Random

import bad_making as making
import msgspec
from bad_toml import CONFIG_TOML, WORKFLOW_TOML, spoilt_toml
from bad_watch import Case, Defect, Outcome, one_line
from measure import ROOT

from penstock.cli.main import main
from penstock.cli.terminal import harmless
from penstock.node import load_config
from streams.errors import UserError

WRONG, AWAY = 2, 4
NOBODY = "nats://127.0.0.1:9"  # the port of discard: nobody listens there
BATCH = re.compile(r"\d+ files?: .*")
PROCESS_SHARE = 0.02  # of the command lines are given to a process of its own
PROCESS_S = 30.0
OPTIONS = {
    "run": ("--input", "--ask", "--trace", "--segment", "--workers", "--groups", "--log"),
    "demo": ("--trace", "--segment", "--workers", "--groups", "--log"),
    "serve": ("--workers", "--log", "--nats-port", "--http-auth"),
    "worker": ("--workers", "--log"),
    "push": ("--segment", "--max-lag", "--gop"),
    "ask": ("--timeout",),
    "story": ("--answer",),
    "jobs": ("--window", "--state"),
    "operators": (),
    "doctor": (),
    "new": (),
    "token": (),
    "nodes": (),
    "streams": (),
    "answers": (),
    "redundancy": (),
}
CLIENTS: tuple[tuple[str, ...], ...] = (
    ("push", "@", "--stream", "@"),
    ("ask", "@", "--stream", "@"),
    ("jobs", "list"),
    ("jobs", "show", "@"),
    ("jobs", "cancel", "@"),
    ("jobs", "submit", "--stream", "@", "--ask", "@"),
    ("answers", "--job", "@"),
    ("streams", "--forget", "@"),
    ("nodes",),
    ("redundancy",),
    ("story", "@"),
)


class Words:
    """Command lines. An input is the arguments as JSON; of a file that is named `@toml`, what it holds is the last."""

    name = "words"
    max_s = 40.0  # some wait for a server that is not there
    batch = 1 << 40

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._folder = Path()

    def case(self, index: int) -> Case:
        chance = Random(f"{self._seed} words {index}")
        target = chance.choice([name for name, (weight, _) in MAKERS.items() for _ in range(weight)])
        words = [os.fsencode(word) if isinstance(word, str) else word for word in map(_real, MAKERS[target][1](chance))]
        is_apart = chance.random() < PROCESS_SHARE
        return Case(f"{target}{'-apart' if is_apart else ''}", msgspec.json.encode([word.hex() for word in words]))

    def open(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-bad-"))
        os.chdir(self._folder)
        os.environ["PENSTOCK_STORE"] = str(self._folder / "store")
        os.environ["HOME"] = str(self._folder)
        for name in ("PENSTOCK_NATS", "XDG_DATA_HOME"):
            os.environ.pop(name, None)
        (self._folder / "good.toml").write_bytes(WORKFLOW_TOML)
        (self._folder / "folder").mkdir()
        (self._folder / "text.mp4").write_text("this is no media\n" * 99)

    def throw(self, case: Case) -> Outcome:
        given = [bytes.fromhex(word) for word in msgspec.json.decode(case.data)]
        words = [os.fsdecode(word) for word in given]
        if "@toml" in words:
            (self._folder / "@toml").write_bytes(given[-1])
            words.pop()
            if words[0] == "serve" and _is_sound(self._folder / "@toml"):
                return "accepted"  # a node would come up
        return _judged(words, *(_apart(words) if case.target.endswith("-apart") else _here(words)))

    def check(self) -> None: ...

    def close(self) -> None:
        os.chdir("/")
        shutil.rmtree(self._folder, ignore_errors=True)


def _real(word: str | bytes) -> str | bytes:
    """A word as a shell can give it: no NUL, and of surrogates those only that stand for a byte."""
    if isinstance(word, bytes):
        return word
    return word.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _is_sound(path: Path) -> bool:
    try:
        load_config(path)
    except UserError:
        return False
    return True


def _here(words: Sequence[str]) -> tuple[int, str, str]:
    """In this process: exit code, stdout, stderr."""
    said, told = io.BytesIO(), io.BytesIO()
    with (
        redirect_stdout(io.TextIOWrapper(said, "utf-8", "strict", write_through=True)),
        redirect_stderr(io.TextIOWrapper(told, "utf-8", "backslashreplace", write_through=True)),
    ):
        try:
            code = main(words)
        except SystemExit as ended:  # --help, --version
            code = ended.code if isinstance(ended.code, int) else 1
        return code, said.getvalue().decode(), told.getvalue().decode()


def _apart(words: Sequence[str]) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "penstock", *words]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=PROCESS_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    except subprocess.TimeoutExpired as error:
        raise Defect("hang", f"penstock {_shown(words)}: not ended within {PROCESS_S:g} s") from error
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _judged(words: Sequence[str], code: int, said: str, told: str) -> Outcome:
    if code == 0:
        return "accepted"
    if words[0] == "doctor":  # what it finds is on stdout
        said = ""
    if code not in (WRONG, AWAY):
        raise Defect("status", f"penstock {_shown(words)}: exit code {code}: {told[-200:]!r}")
    if code == AWAY and not _asks_a_server(words):
        raise Defect("status", f"penstock {_shown(words)}: exit code {code} for what is wrong here: {told[-200:]!r}")
    if "Traceback" in told or said:
        raise Defect("message", f"penstock {_shown(words)}: {(told or said)[-300:]!r}")
    for line in _lines(words, told.removesuffix("\n")):
        one_line(line)
    if harmless(told) != told:
        raise Defect("message", f"penstock {_shown(words)}: the terminal is given instructions: {told[:200]!r}")
    return "refused"


def _lines(words: Sequence[str], told: str) -> Sequence[str]:
    """Of several files, or a folder's: a line for each that failed, and what became of all."""
    *failed, last = told.split("\n")
    is_of_many = words[0] == "run" and bool(failed) and BATCH.fullmatch(last) is not None
    return [*failed, last] if is_of_many and all(line.startswith("failed ") for line in failed) else [told]


def _asks_a_server(words: Sequence[str]) -> bool:
    return words[0] in ("doctor", "run", "demo", "serve", "worker", "story", *(each[0] for each in CLIENTS))


def _shown(words: Sequence[str]) -> str:
    return ascii([word if len(word) < 60 else f"{word[:60]}..." for word in words])


# --- making them -------------------------------------------------------------------------------------------------


def _word(chance: Random) -> str:
    return making.text(chance, chance.choice(("", "5s", "file.mp4", "good.toml", "lobby", "127.0.0.1:8080", "-10m")))


def _command(chance: Random) -> list[str]:
    """No command, an unknown one, or one with what it does not know."""
    words = [chance.choice((*OPTIONS, _word(chance)))]
    words += [_word(chance) for _ in range(chance.choice((0, 1, 3)))]
    words += [f"--{_word(chance)}"] * chance.choice((0, 1))
    return [*words, "--no-such-option"] if words[0] in OPTIONS else words


def _option(chance: Random) -> list[str]:
    """An option that is known, with what it does not take. What would be taken is never begun: something is missing."""
    name = chance.choice([name for name, options in OPTIONS.items() if options])
    option = chance.choice(OPTIONS[name])
    given = [option, _word(chance)] if chance.random() < 0.5 else [f"{option}={_word(chance)}"]
    return [*(("jobs", chance.choice(("submit", "list"))) if name == "jobs" else (name,)), *given, "--no-such-option"]


def _lone_option(chance: Random) -> list[str]:
    """The same, where the option's own word comes first."""
    match chance.randrange(4):
        case 0:
            return [
                "run",
                "good.toml",
                "--input",
                "text.mp4",
                "--ask",
                "x",
                "--segment",
                chance.choice(("0", "-1", "1e9", "999h", "nan")),
            ]
        case 1:
            return [
                "run",
                "good.toml",
                "--input",
                "text.mp4",
                "--ask",
                "x",
                "--workers",
                chance.choice(("0", "65", "-1", "\u0662", "9" * 5000)),
            ]
        case 2:
            return ["serve", "--nats-port", chance.choice(("", "x", "1e3", "9" * 5000, "0x10"))]
    return [
        "run",
        "good.toml",
        "--input",
        "none.mp4",
        "--trace",
        chance.choice(("folder", "no/such/file", "/dev/full/x", "a" * 300, "")),
    ]


def _input(chance: Random) -> list[str]:
    """A file that is not there, or none."""
    places = (
        "",
        ".",
        "/",
        "folder",
        "none.mp4",
        "a" * 300,
        "http://[",
        "file://[",
        "file:///%00",
        "rtsp://h/x",
        "/proc/self/mem/x",
    )
    given = chance.choice((*places, _word(chance) + ".mp4"))
    return ["run", "good.toml", "--input", given, "--ask", making.text(chance, "Who?")]


def _workflow(chance: Random) -> list[str | bytes]:
    """A workflow that is wrong, about a file that is not there."""
    return ["run", "@toml", "--input", "none.mp4", "--ask", "Who?", spoilt_toml(WORKFLOW_TOML)(chance)]


def _config(chance: Random) -> list[str | bytes]:
    return ["serve", "--http", "none", "--config", "@toml", spoilt_toml(CONFIG_TOML)(chance)]


def _place(chance: Random) -> list[str]:
    """A workflow, a configuration or a store where nothing can be."""
    place = chance.choice(
        ("", "folder", "none", "a" * 300, "text.mp4/x", "/dev/null/x", "/proc/x", "\udcff", "a\nb", _word(chance))
    )
    kinds = (
        *(
            ["run", place, "--input", "none.mp4"],
            ["serve", "--http", "none", "--config", place],
            ["story", "--store", place],
        ),
        *(["nodes", "--store", place], ["new", "operator", "loudness", "--dir", f"text.mp4/{place}"]),
    )
    return list(chance.choice(kinds))


def _new(chance: Random) -> list[str]:
    names = ("class", "os", "tests", "detect_scenes", "A", "a b", "-a", "a--b", "segment", "..", "x" * 41)
    return ["new", "operator", chance.choice((*names, making.text(chance, "loudness") + "!"))]


def _client(chance: Random) -> list[str]:
    """What asks a node, where none is."""
    words = [making.text(chance, "lobby") if word == "@" else word for word in chance.choice(CLIENTS)]
    where = chance.choice(([], ["--store", "folder"], ["--nats", _url(chance)]))
    return [*words, *where]


def _url(chance: Random) -> str:
    urls = (
        NOBODY,
        "",
        "nats://",
        "nats://[",
        "http://x",
        "nats://h:99999",
        "nats://\u2100",
        "tls://127.0.0.1:9",
        "x" * 300,
        "nats://a:b@c:d",
    )
    return chance.choice(urls)


MAKERS: dict[str, tuple[int, Callable[[Random], Sequence[str | bytes]]]] = {
    "command": (8, _command),
    "option": (8, _option),
    "lone_option": (3, _lone_option),
    "input": (6, _input),
    "workflow": (10, _workflow),
    "config": (10, _config),
    "place": (6, _place),
    "new": (4, _new),
    "client": (2, _client),
}
