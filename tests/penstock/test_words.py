"""The words of the command line that need no server."""

import argparse
import io

import pytest

from penstock.cli.main import _duration_s, main
from penstock.cli.show import console


def test_it_says_which_version_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code in (None, 0)
    said = capsys.readouterr()
    assert said.out.startswith("penstock ")
    assert said.out.count("\n") == 1
    assert said.err == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("500ms", 0.5), ("2.5s", 2.5), ("1m", 60), ("10h", 36000), (" 3s ", 3)]
)
def test_durations(text: str, seconds: float) -> None:
    assert _duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1s", "1d", "1 h", "1e3", "٣s", "1.s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 5s, 500ms, 1m or 10h"):
        _duration_s(text)


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    """As with `| head`: main ends quietly on this error, wherever it comes from."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    results = console()
    results.file = Gone()
    with pytest.raises(BrokenPipeError):
        results.print("an answer")
