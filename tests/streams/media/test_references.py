"""What of a URL stands elsewhere."""

from pathlib import Path

import pytest

from streams.errors import UserError
from streams.media.addresses import place_of
from streams.media.references import as_if_filled_in, filled_in, refers


def test_variables_and_files_are_filled_in_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text(" p@ss/w:rd\n")
    monkeypatch.setenv("CAM_USER", "jane doe")
    url = f"rtsp://${{CAM_USER}}:${{file:{tmp_path}/password}}@10.0.0.7:554/main"
    assert refers(url)
    assert filled_in(url) == "rtsp://jane%20doe:p%40ss%2Fw%3Ard@10.0.0.7:554/main"
    assert place_of(as_if_filled_in(url)).kind == "rtsp"


def test_what_refers_to_nothing_stays_as_it_is() -> None:
    for url in ("rtsp://a:b@c/d", "/films/$5.mp4", "http://h/${", "${1}"):
        assert not refers(url)
        assert filled_in(url) == as_if_filled_in(url) == url


def test_what_is_not_there_is_named_and_no_value_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAM_NONE", raising=False)
    monkeypatch.setenv("CAM_USER", "s3cr3t")
    with pytest.raises(UserError, match=r"\$\{CAM_NONE\}: there is no such variable") as refused:
        filled_in("rtsp://${CAM_USER}:${CAM_NONE}@h/")
    assert "s3cr3t" not in str(refused.value)
    with pytest.raises(UserError, match="No such file"):
        filled_in(f"rtsp://${{file:{tmp_path}/none}}@h/")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not text"):
        filled_in(f"rtsp://${{file:{tmp_path}/bytes}}@h/")
