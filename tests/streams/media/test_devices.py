"""Capture devices: a screen, which is one that every machine can have, and ALSA's sound card that is none."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from reading import assert_lost_once, assert_whole, lost_once, pictures, reading

from streams.errors import UserError
from streams.media.addresses import ALSA_SETTINGS
from streams.media.sources import read

SIZE = (320, 240)


@contextmanager
def screen(display: str = "") -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """An X server without a monitor, and its display; killed with the block."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("there is no Xvfb on this machine to take pictures of")
    told, tells = os.pipe()
    named = [display] if display else []
    process = subprocess.Popen(
        [program, *named, "-displayfd", str(tells), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24", "-nolisten", "tcp"],
        pass_fds=(tells,),
        stderr=subprocess.DEVNULL,
    )
    try:
        os.close(tells)
        with os.fdopen(told) as line:
            yield f":{line.readline().strip()}", process
    finally:
        process.kill()
        process.wait(10)


def test_a_screen_that_goes_dark_comes_back_behind_a_gap() -> None:
    """Raw pictures, which are made H.264 on the way in."""
    with screen() as (display, server), reading(f"device:x11grab:{display}") as one:
        records = one.wait(lambda records: len(records) >= 3)
        assert {size for each in assert_whole(records) for size in pictures(each)} == {SIZE}
        server.kill()
        server.wait(10)
        with screen(display):
            assert_lost_once(one.wait(lost_once))


@pytest.mark.skipif(not ALSA_SETTINGS.exists(), reason="ALSA is not set up on this machine (libasound2-data)")
def test_sound_comes_from_alsa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALSA_CONFIG_PATH", raising=False)
    with reading("device:alsa:null") as one:
        found = assert_whole(one.wait(lambda records: len(records) >= 2))
    assert {(track.kind, track.codec) for each in found for track in each.tracks} == {("audio", "pcm_s16le")}


def test_without_its_settings_alsa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALSA_CONFIG_PATH", raising=False)
    monkeypatch.setattr("streams.media.addresses.ALSA_SETTINGS", ALSA_SETTINGS / "nowhere")
    with pytest.raises(UserError, match="ALSA is not set up here: install libasound2-data"):
        list(read("device:alsa:null", "s", live=True, stop=threading.Event()))
