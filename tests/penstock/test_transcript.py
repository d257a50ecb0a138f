"""What was heard, as it is written: for people, for players and for programs."""

import json

import pytest

from operators.heard import Speech
from penstock.cli.transcript import _meant, _names, written
from streams.errors import UserError

S = 1_000_000_000
SAID = [
    Speech(start_ns=S, end_ns=3 * S, text="The train\x1b[31m leaves.", confidence=0.9),
    Speech(start_ns=4 * S, end_ns=5 * S, text=" \n "),
]


def test_text_is_a_line_for_each_utterance_and_nothing_a_terminal_obeys() -> None:
    assert written(SAID, "txt", "f1", "a.mp4") == "The train\ufffd[31m leaves.\n"
    assert written([], "txt", "f1", "a.mp4") == ""


def test_subtitles_are_those_of_their_form() -> None:
    assert written(SAID, "srt", "f1", "a.mp4") == "1\n00:00:01,000 --> 00:00:03,000\nThe train[31m leaves.\n\n"
    assert written(SAID, "vtt", "f1", "a.mp4").startswith("WEBVTT\n\n00:00:01.000 --> 00:00:03.000\n")


def test_json_says_where_it_is_from() -> None:
    first, _ = map(json.loads, written(SAID, "json", "f1", "a.mp4").splitlines())
    assert first == {
        "stream": "f1",
        "title": "a.mp4",
        "start_s": 1.0,
        "end_s": 3.0,
        "text": "The train\x1b[31m leaves.",
        "confidence": 0.9,
    }


def test_streams_are_meant_by_name_or_file() -> None:
    heard = {"f1": "b.mp4", "f2": "a.mp4", "f3": "a.mp4"}
    assert _meant([], heard) == ["f2", "f3", "f1"]
    assert _meant(["f1", "a.mp4", "f2"], heard) == ["f1", "f2", "f3"]
    with pytest.raises(UserError, match=r"nothing was heard in a stream 'x': there are a\.mp4, a\.mp4, b\.mp4"):
        _meant(["x"], heard)
    with pytest.raises(UserError, match="nothing was heard yet"):
        _meant([], {})


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("a talk.mp4", "a talk.srt"),
        ("../../etc/passwd", "passwd.srt"),
        ("..", "f1.srt"),
        ("a\x1b/b\n.x", "b.srt"),
        ("", "f1.srt"),
    ],
)
def test_no_title_leaves_the_folder(title: str, name: str) -> None:
    assert _names(["f1"], {"f1": title}, "srt") == {"f1": name}


def test_files_of_one_name_do_not_overwrite_each_other() -> None:
    names = _names(["f1", "f2"], {"f1": "x/a.mp4", "f2": "y/a.ogg"}, "vtt")
    assert names == {"f1": "a.vtt", "f2": "a-f2.vtt"}
