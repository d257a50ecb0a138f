"""What reaches a terminal is text."""

import io
import json
import re
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.table import Table

from engine.node.submission import Submitted
from penstock.cli import tables
from penstock.cli.main import main
from penstock.cli.show import brief
from penstock.cli.terminal import SafeConsole, harmless, json_line

HOSTILE = [
    "\x1b]0;owned\x07",  # the window's title
    "\x1b[2J\x1b[H",  # the screen
    "\x1bP+q544e\x1b\\",  # what a terminal answers for the user
    "\x9b31m",  # C1
    "a\rb",
    "a\x08b",
    "safe\u202egpj.exe",  # the direction of writing
    "\x7f",
    "\u2028",
]


def is_harmless(text: str) -> bool:
    return not re.search("[\x1b\r\x07\x08\x7f-\x9f]", text) and not any(
        unicodedata.category(c) == "Cc" and c not in "\n\t" for c in text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_no_instruction_is_shown(text: str) -> None:
    out = io.StringIO()
    shown = SafeConsole(file=out, width=200)
    shown.print(escape(text), soft_wrap=True)
    shown.print(f"[bold]{escape(text)}[/]")
    table = Table(text)
    table.add_row(escape(text))
    shown.print(table)
    assert is_harmless(out.getvalue())
    assert "\ufffd" in harmless(text)


def test_colours_of_our_own_are_kept_where_there_is_a_terminal() -> None:
    out = io.StringIO()
    SafeConsole(file=out, force_terminal=True, color_system="standard", highlight=False).print("[red]stop[/] \x1b[0m")
    assert out.getvalue() == "\x1b[31mstop\x1b[0m \ufffd[0m\n"


@given(st.text())
def test_json_is_the_same_to_who_reads_it_and_nothing_to_a_terminal(text: str) -> None:
    line = json_line({"text": text})
    assert json.loads(line) == {"text": text}
    assert msgspec.json.decode(line) == {"text": text}
    assert is_harmless(line)
    assert "\n" not in line


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Zl", "Zp", "Cs"])))
def test_text_is_left_as_it_is(text: str) -> None:
    assert harmless(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_an_error_names_a_file_without_obeying_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "examples/video_qa.toml", "--input", f"/no/{text}.mp4"]) == 2
    said = capsys.readouterr()
    assert is_harmless(said.err)
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_note_has_one_reason_or_says_who_has_them() -> None:
    assert brief("speech runs on tiny: it has no captions") == "speech runs on tiny: it has no captions"
    many = brief("speech runs on tiny: it has no captions; base is not here (pip install x)")
    assert many == "speech runs on tiny; `penstock operators` says what would be better"
    assert brief("set aside: a: b; c") == "set aside: a: b; c"


def test_submitting_says_in_one_short_line_why_no_better_model_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    notice = "objects runs on nanodet: rf-detr is not here (fetch it); yolox is not here (put it there)"
    asked = {"job": "j", "stream": "s", "standing": True, "shared": (), "new": ("objects",), "first": 0, "last": None}
    tables.submitted(Submitted(**asked, notices=(notice,)), as_json=False)  # type: ignore[arg-type]
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "note: objects runs on nanodet; `penstock operators` says what would be better"
