"""Where language models are: read from the owner's file, and wrong ones said in a line."""

from pathlib import Path

import pytest

from operators.language.endpoints import endpoint_of, endpoints
from streams.errors import UserError

ONE = '[[endpoint]]\nmodel = "a/b"\nurl = "http://127.0.0.1:8000/v1"\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
    return tmp_path / "endpoints.toml"


def test_models_are_found_by_name_and_the_first_of_one_name_counts(file: Path) -> None:
    file.write_text(ONE + 'key = "${NOT_READ_YET}"\n' + ONE.replace("8000", "9000") + ONE.replace("a/b", "c"))
    assert [each.model for each in endpoints()] == ["a/b", "c"]
    found = endpoint_of("a/b")
    assert found is not None
    assert (found.url, found.key) == ("http://127.0.0.1:8000/v1", "${NOT_READ_YET}")
    assert endpoint_of("d") is None


def test_without_a_file_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert endpoints() == ()
    (tmp_path / "penstock").mkdir()
    (tmp_path / "penstock" / "endpoints.toml").write_text(ONE)
    assert len(endpoints()) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[endpoint]\n", "Expected"),
        ("[[endpoints]]\n", "unknown field `endpoints`"),
        (ONE + "adress = 1\n", "unknown field `adress`"),
        (ONE + "quality = 2\n", "<= 1"),
        (ONE.replace("a/b", "two words"), "model"),
        (ONE.replace("http://127.0.0.1:8000/v1", "file:///etc/passwd"), "'a/b' is no http"),
        (ONE.replace("http://127.0.0.1:8000/v1", "http://[::1/v1"), "'a/b' is no http"),
        (ONE.replace("127", "me:secret@127"), "a key belongs in key"),
        (ONE + 'key = "sk-123"\n', r'write key = "\$\{NAME\}"'),
        (ONE + 'key = "sk-123${HOME}"\n', r'write key = "\$\{NAME\}"'),
        (ONE + "max_tokens = 4096\n", "'a/b' has no room for a passage"),
        (f"x = {'9' * 5000}", "digits|unknown field"),
    ],
)
def test_what_is_wrong_is_one_line_without_the_key(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=why) as caught:
        endpoints()
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    assert "sk-123" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_named_and_not_there_is_said(file: Path) -> None:
    with pytest.raises(UserError, match=r"endpoints\.toml, which \$PENSTOCK_ENDPOINTS names, is not there"):
        endpoints()
