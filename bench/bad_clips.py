"""Good media to be spoilt: a few seconds in every container and habit that the tests know, each made once."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
from measure import ROOT

SECOND = "second.mp4"  # of the demo's clip, small: what a node is to go on answering about
ZOO: dict[str, dict[str, Any]] = {
    "h264.mp4": {"video": "libx264", "audio": "aac", "captions": ((0.2, 0.9, "one"), (1.0, 1.5, "two"))},
    "fragmented.mp4": {
        "video": "libx264",
        "audio": "aac",
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "rotated.mov": {"video": "libx264", "audio": "pcm_s16le", "rotate": 90},
    "h264.mkv": {"video": "libx264", "audio": "libopus", "captions": ((0.2, 0.9, "one"),)},
    "vp8.webm": {"video": "libvpx", "audio": "libopus"},
    "h264.ts": {"video": "libx264", "audio": "aac"},
    "mpeg4.avi": {"video": "mpeg4", "audio": "mp3"},
    "flv1.flv": {"video": "flv", "audio": "aac", "rate": 44_100},
    "sound.ogg": {"audio": "libopus"},
    "sound.wav": {"audio": "pcm_s16le"},
    "sound.mp3": {"audio": "mp3"},
    "sound.aac": {"audio": "aac", "format": "adts"},
    "wmv.asf": {"video": "wmv2", "audio": "wmav2"},
    "sound.flac": {"audio": "flac"},
}


def made(folder: Path) -> dict[str, bytes]:
    """By name. Made in a child, so that none of FFmpeg's threads are in the process that forks."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _make(folder)
            code = 0
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise RuntimeError("the clips cannot be made")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _make(folder: Path) -> None:
    sys.path.append(str(ROOT / "tests"))
    zoo: Any = importlib.import_module("media_zoo")
    clips: Any = importlib.import_module("clips")
    make: Callable[..., Path] = zoo.make
    clips.first_seconds(folder / SECOND, 1.0)
    for name, what in ZOO.items():
        try:
            options = {"g": "10"} if "video" in what else None
            container = {"fflags": "+bitexact", **what.get("container_options", {})}  # the same bytes every time
            make(folder / name, seconds=1.6, options=options, **{**what, "container_options": container})
        except (av.error.FFmpegError, ValueError) as error:  # this build of FFmpeg has no such encoder
            print(f"{name}: {error}", file=sys.stderr)
            (folder / name).unlink(missing_ok=True)
