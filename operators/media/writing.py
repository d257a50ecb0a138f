"""Writes pictures and sound as a film that browsers play: H.264 and AAC in MP4, with its index in front.

Times are media times; the film begins with its first picture. Pictures keep theirs, however unevenly they come; but a
hole of over MAX_HOLE_S, in which a source was away, is HOLE_S long.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from operators.media.sound import Audio
from streams.errors import UserError

TICKS = 90_000  # a second
SOUND_RATE = 48_000
QUALITY = "23"  # x264's constant rate factor: its default
SPEED = "veryfast"
MAX_HOLE_S, HOLE_S = 10.0, 1.0


class Film:
    """A film that is being written. Made by `film_at`."""

    def __init__(self, container: Any, *, has_sound: bool) -> None:
        self.num_pictures = 0
        self._container = container
        self._has_sound = has_sound
        self._video: Any = None
        self._sound: Any = None
        self._start_ns = 0
        self._last_ticks = -1
        self._sample = 0  # of the sound, the next to be written

    def picture(self, at_ns: int, image: NDArray[np.uint8]) -> None:
        """The next picture, uint8 [H, W, 3], RGB; all of the first one's size, or scaled to it. One that is not behind
        the one before is left out."""
        height, width = (side - side % 2 or 2 for side in image.shape[:2])
        if self._video is None:
            self._start_ns = at_ns
            self._open(width, height)
        hole_s = (at_ns - self._start_ns) / 1e9 - self._last_ticks / TICKS
        if self._last_ticks >= 0 and hole_s > MAX_HOLE_S:
            self._start_ns += round((hole_s - HOLE_S) * 1e9)
        ticks = round((at_ns - self._start_ns) * TICKS / 1e9)
        if ticks <= self._last_ticks:
            return
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        frame = frame.reformat(self._video.width, self._video.height, "yuv420p", dst_colorspace="ITU709")
        frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
        self._container.mux(self._video.encode(frame))
        self._last_ticks = ticks
        self.num_pictures += 1

    def _open(self, width: int, height: int) -> None:
        options = {"crf": QUALITY, "preset": SPEED}
        self._video = self._container.add_stream("libx264", rate=30, options=options)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        self._video.codec_context.time_base = Fraction(1, TICKS)
        self._video.codec_context.color_primaries = self._video.codec_context.color_trc = 1  # BT.709
        self._video.codec_context.colorspace = 1
        if self._has_sound:  # all streams are there before anything is written
            self._sound = self._container.add_stream("aac", rate=SOUND_RATE, layout="mono")

    def sound(self, heard: Audio) -> None:
        """Sound at SOUND_RATE, in order; silence where some is missing, and none from before the first picture."""
        if self._sound is None or not len(heard.samples):
            return
        at = round((heard.start_ns - self._start_ns) * SOUND_RATE / 1e9)
        samples = heard.samples[max(0, self._sample - at) :]
        quiet = np.zeros(min(max(0, at - self._sample), SOUND_RATE * 3600), np.int16)
        samples = np.concatenate([quiet, samples])
        if not len(samples):
            return
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, self._sample, Fraction(1, SOUND_RATE)
        self._sample += len(samples)
        self._container.mux(self._sound.encode(frame))

    def finish(self) -> None:
        for stream in (self._video, self._sound):
            if stream is not None:
                self._container.mux(stream.encode(None))


def place_for(path: Path) -> Path:
    """Where a file of that name goes, which is where a link leads. Raises UserError for what is there and is no file,
    and for a name that no file can have."""
    try:
        place = path.resolve()
        is_other = place.exists() and not place.is_file()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another name") from error
    if is_other:
        raise UserError(f"{path} is no file: give the name of one, or of one that is not there yet")
    return place


@contextmanager
def film_at(path: Path, *, has_sound: bool) -> Iterator[Film]:
    """A film to be written to `path`, or to what that leads to; none is left there where it is not finished. Raises
    UserError where it cannot be written, and where there is something that is no file."""
    place = place_for(path)
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=".penstock-", suffix=".part", dir=place.parent)
        os.close(handle)
        part = Path(name)
        with av.open(name, "w", format="mp4", options={"movflags": "+faststart"}) as container:
            film = Film(container, has_sound=has_sound)
            yield film
            film.finish()
        if film.num_pictures:
            part.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask())
            part.replace(place)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a file in a folder you can write") from error
    except av.FFmpegError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def jpeg(image: NDArray[np.uint8], quality: int = 85) -> bytes:
    """A picture, uint8 [H, W, 3], RGB, as a JPEG file."""
    import cv2  # long to load

    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"no JPEG can be made of uint8 {list(image.shape)}")
    return data.tobytes()
