"""Makes odd media on the fly: every container, codec and habit that the segmenter and the decoder must live with."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def picture(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """RGB, every index another: a ramp that wanders, and a bright block that says where up is (top left)."""
    x = (np.arange(width)[None, :] * 3 + index * 7) % 256
    y = (np.arange(height)[:, None] * 2 + index * 5) % 256
    image = np.stack([np.broadcast_to(x, (height, width)), np.broadcast_to(y, (height, width)), (x + y) // 2], axis=2)
    image = (image // 2).astype(np.uint8)
    image[: height // 4, : width // 4] = 250
    return np.ascontiguousarray(image)


def sound(num_samples: int, rate: int) -> NDArray[np.int16]:
    """A chirp with a beat: no stretch of it looks like another. Stereo, interleaved, [1, 2 * num_samples]."""
    t = np.arange(num_samples) / rate
    left = 0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t) * (1 + 0.5 * np.sin(2 * np.pi * 3 * t))
    right = 0.2 * np.sin(2 * np.pi * 523 * t)
    return np.ascontiguousarray((np.stack([left, right], axis=1) * 20_000).astype(np.int16).reshape(1, -1))


def make(
    path: Path,
    *,
    video: str | None = None,
    audio: str | None = None,
    captions: tuple[tuple[float, float, str], ...] = (),
    seconds: float = 3.0,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotate: int | None = None,
    times: Callable[[int], float] | None = None,
    rate: int = 48_000,
    audio_delay_s: float = 0.0,
    num_pictures: int | None = None,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a file and return its path. `times(i)`: when picture i is shown, in seconds (variable frame rate)."""
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as container:
        feeds: list[tuple[float, Any, Any]] = []  # (time, stream, frame or packet), so that all is well interleaved
        if video:
            v: Any = container.add_stream(video, rate=fps, options=options or {})
            v.width, v.height, v.pix_fmt = *size, pix_fmt
            v.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            v.codec_context.thread_count = 1
            if rotate is not None:
                v.set_display_rotation(rotate)
            for index in range(num_pictures if num_pictures is not None else round(seconds * fps)):
                at_s = times(index) if times else index / fps
                frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24").reformat(format=pix_fmt)
                frame.time_base = v.codec_context.time_base
                frame.pts = round(at_s / frame.time_base)
                feeds.append((at_s, v, frame))
        if audio:
            a: Any = container.add_stream(audio, rate=rate, layout="stereo")
            if audio == "wmav2":
                a.bit_rate = 128_000
            samples = sound(round(seconds * rate), rate)
            for start in range(0, samples.shape[1] // 2, 960):
                part = np.ascontiguousarray(samples[:, 2 * start : 2 * (start + 960)])
                chunk = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
                chunk.sample_rate, chunk.time_base = rate, Fraction(1, rate)
                chunk.pts = start + round(audio_delay_s * rate)
                feeds.append((start / rate + audio_delay_s, a, chunk))
        if captions:
            s: Any = container.add_stream("mov_text" if path.suffix == ".mp4" else "srt")
            s.codec_context.subtitle_header = (
                ASS_HEADER  # the encoder will not open without one; packets come ready made
            )
            for start_s, end_s, text in captions:
                feeds.append((start_s, s, _caption(start_s, end_s, text, s)))
        for _, stream, item in sorted(feeds, key=lambda feed: feed[0]):
            container.mux(item if isinstance(item, av.Packet) else stream.encode(item))
        for stream in {id(stream): stream for _, stream, _ in feeds}.values():
            if stream.type != "subtitle":
                container.mux(stream.encode(None))
    return path


def _caption(start_s: float, end_s: float, text: str, stream: Any) -> Any:
    data = text.encode()
    packet: Any = av.Packet(len(data).to_bytes(2, "big") + data if stream.codec_context.name == "mov_text" else data)
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = round(start_s * 1000)
    packet.duration = round((end_s - start_s) * 1000)
    return packet


def jumping_ts(path: Path) -> Path:
    """An MPEG transport stream whose clock starts again half-way: two recordings in one file."""
    first = make(path.with_suffix(".1.ts"), video="libx264", audio="aac", options={"g": "10", "bf": "0"}, seconds=2)
    path.write_bytes(first.read_bytes() + first.read_bytes())
    return path


def mutated(data: bytes, seed: int) -> bytes:
    """The file with one to eight bits flipped, always the same ones for a seed."""
    rng = np.random.default_rng(seed)
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def whole_pictures(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    """Every picture of a file as its container decodes it: (seconds on the container's clock, gray [H, W])."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [(float(frame.time), frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]  # type: ignore[misc]


def whole_sound(path: Path, rate: int) -> NDArray[np.int16]:
    """All sound of a file as its container decodes it, mono at `rate`, gaps closed."""
    with av.open(str(path)) as container:
        to_mono = av.AudioResampler(format="s16", layout="mono")
        mono = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in to_mono.resample(frame)]
        rate_in = container.streams.audio[0].codec_context.sample_rate
    line = np.concatenate(mono)
    if rate_in == rate:
        return line  # type: ignore[return-value]
    frame = av.AudioFrame.from_ndarray((line.astype(np.float32) / 32768)[None], format="flt", layout="mono")
    frame.sample_rate = rate_in
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    return np.concatenate([out.to_ndarray()[0] for out in [*resampler.resample(frame), *resampler.resample(None)]])  # type: ignore[return-value]
