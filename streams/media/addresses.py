"""What a source's URL means: how FFmpeg is to open it, and what of it may be shown to people.

A URL often carries credentials: before the host, in the path (an RTMP key) or in the query (an SRT passphrase).
`public_url` is the only form of it that goes into records, errors and logs.
"""

import os
import re
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from streams.errors import Transient, UserError
from streams.media.formats import Kind, whitelists
from streams.media.probe import Opening
from streams.media.srt import SrtReceiver

SCHEMES: dict[str, Kind] = {
    "http": "http",
    "https": "http",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "rtmp": "rtmp",
    "rtmps": "rtmp",
    "srt": "srt",
    "udp": "udp",
}
RECORDED: frozenset[Kind] = frozenset({"file", "folder", "stdin"})
SHOWN = frozenset({"mode", "listen", "latency", "pkt_size", "fifo_size", "buffer_size", "ttl", "localaddr"})
CAPTURES = frozenset({"v4l2", "alsa", "pulse", "x11grab", "fbdev", "avfoundation", "dshow"})
SUFFIXES = frozenset(
    f".{suffix}"
    for suffixes in (
        "3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts webm wmv",
        "aac ac3 aif aiff caf flac m4a mka mp3 oga ogg opus wav wma",
    )
    for suffix in suffixes.split()
)
OPTIONS: dict[Kind, dict[str, str]] = {
    "rtsp": {"rtsp_transport": "tcp"},
    "udp": {"overrun_nonfatal": "1", "fifo_size": "50000"},  # 50000 packets of 188 bytes wait for us at most
}
ANALYZE = {"analyzeduration": "3000000"}  # microseconds: FFmpeg's own 5 s and more are long for what is live
HLS_TIMES = 3.0  # HLS comes a file at a time: it is waited for so many times as long as others
LOOK_S = 0.1
MAX_NAME = 120  # of a stream that is made up here
_NO_TOKEN = re.compile(r"[^A-Za-z0-9_]+")
ALSA_SETTINGS = Path("/usr/share/alsa/alsa.conf")  # PyAV's own alsa-lib looks for them where it was built


@dataclass(frozen=True, slots=True)
class Place:
    """Where a source is. `name` is its public URL; `paths` are its files, where it is recorded in such."""

    kind: Kind
    name: str
    source: str = ""
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()
    is_passive: bool = False  # it calls us

    @property
    def is_live(self) -> bool:
        """Whether it may go on for ever, and may be lost and come back."""
        return self.kind not in RECORDED

    def opening(self, open_timeout_s: float, read_timeout_s: float, options: Mapping[str, str]) -> Opening:
        """How to open it now. Raises UserError where this machine has not what it takes."""
        if self.kind == "stdin":
            return Opening(StandardInput(self.name), self.name, options=whitelists("stdin"))
        if self.kind == "srt":
            return Opening(SrtReceiver(self.source, self.name, open_timeout_s, read_timeout_s), self.name, "mpegts")
        if self.format == "alsa" and not os.environ.get("ALSA_CONFIG_PATH"):
            if not ALSA_SETTINGS.exists():
                line = f"{self.name}: ALSA is not set up here: install libasound2-data, or set ALSA_CONFIG_PATH"
                raise UserError(line)
            os.environ["ALSA_CONFIG_PATH"] = str(ALSA_SETTINGS)
        times = HLS_TIMES if self.kind == "hls" else 1.0
        timeouts_s = (open_timeout_s, read_timeout_s * times)
        how = {**ANALYZE, **self.options, **options, **whitelists(self.kind)}
        return Opening(self.source, self.name, self.format, how, timeouts_s)


def kind_of(url: str) -> Kind:
    """What kind of source a URL names. Raises UserError where it names none, or a file that is not there."""
    return place_of(url).kind


def is_live(url: str) -> bool:
    """Whether a URL names what may go on for ever: no file, folder or standard input. Raises UserError as `kind_of`."""
    return place_of(url).is_live


def place_of(url: str) -> Place:
    """What a URL means. Raises UserError where it means nothing, or a file or device that is not there."""
    if url == "-":
        return Place("stdin", "standard input")
    if url.startswith("device:"):
        return _device(url)
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() == "file":
        return _recording(unquote(rest.removeprefix("localhost")) if separator else url)
    name = public_url(url)
    kind = SCHEMES.get(scheme.lower())
    if kind is None:
        known = ", ".join(["file", *SCHEMES])
        raise UserError(f"{name}: {scheme} is not a kind of source; give a path, device:NAME or a URL ({known})")
    try:
        parts = urlsplit(url)
        is_reachable = bool(parts.hostname or kind == "udp") and (parts.port is not None or kind not in ("udp", "srt"))
    except ValueError:
        is_reachable = False
    if not is_reachable:
        raise UserError(f"{name}: names no host and port; give {scheme}://HOST:PORT/...")
    query = dict(parse_qsl(parts.query))
    options = dict(OPTIONS.get(kind, {}))
    if kind == "http" and parts.path.lower().endswith((".m3u8", ".m3u")):
        kind = "hls"
    listens = kind == "rtmp" and query.get("listen", "0") not in ("", "0")
    if listens:
        options["listen"] = "1"
        url = parts._replace(query=urlencode({key: value for key, value in query.items() if key != "listen"})).geturl()
    is_passive = kind == "udp" or listens or (kind == "srt" and query.get("mode") == "listener")
    return Place(kind, name, url, None, options, is_passive=is_passive)


def files_of(url: str) -> list[Path]:
    """The media files of a folder, in the order of their names; of anything else none."""
    if "://" in url and not url.lower().startswith("file:"):
        return []
    place = place_of(url)
    return list(place.paths) if place.kind == "folder" else []


def streams_for(stream: str, files: Sequence[Path]) -> list[str]:
    """A name for the stream of each file, each another: the stream's, and the file's as far as it can stand in one."""
    names: list[str] = []
    for path in files:
        name = f"{stream}-{_NO_TOKEN.sub('-', path.stem).strip('-')}"[:MAX_NAME].rstrip("-")
        while name in names:
            name = f"{name[: MAX_NAME - 8]}-{len(names) + 1}"
        names.append(name)
    return names


def public_url(url: str) -> str:
    """The URL without what may be secret: user and password, the path (an RTMP key, a camera's token), the fragment,
    and of the query all but known settings."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme.lower() == "file":
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme}://..."
    said = parse_qsl(parts.query.encode(errors="replace").decode())
    query = urlencode([(key, value) for key, value in said if key in SHOWN])
    host = parts.netloc.rpartition("@")[2]
    path = "/..." if parts.path.strip("/") else ""
    return parts._replace(netloc=host, path=path, query=query, fragment="").geturl()


class StandardInput:
    """The bytes of standard input; a read under way can be given up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._given_up: str | None = None

    def read(self, max_bytes: int = -1, /) -> bytes:
        """What is there, waiting for some; b"" at the end. Raises Transient after `give_up`."""
        number = sys.stdin.fileno()
        while self._given_up is None:
            if select.select([number], [], [], LOOK_S)[0]:
                return os.read(number, max_bytes if max_bytes > 0 else 1 << 16)
        raise Transient(self._given_up)

    def give_up(self, reason: str) -> None:
        self._given_up = self._given_up or reason


def _recording(path: str) -> Place:
    place = Path(path)
    try:
        if not place.is_dir():
            if not place.exists():
                raise UserError(f"{path}: there is no such file; give the path or URL of a video or audio file")
            return Place("file", path, path, paths=(place,))
        found = tuple(sorted(each for each in place.iterdir() if each.is_file() and each.suffix.lower() in SUFFIXES))
    except (OSError, ValueError) as error:  # a name too long, or with a NUL in it
        raise UserError(
            f"{path}: cannot be a path ({getattr(error, 'strerror', None) or error}); give another"
        ) from error
    if not found:
        raise UserError(f"{path}: there are no media files in this folder; give one that holds video or audio files")
    return Place("folder", path, path, paths=found)


def _device(url: str) -> Place:
    name = url.removeprefix("device:")
    format, separator, rest = name.partition(":")
    if name.startswith("/dev/video"):
        format, rest = "v4l2", name
    elif not separator or format not in CAPTURES:
        known = ", ".join(f"device:{each}:NAME" for each in sorted(CAPTURES))
        raise UserError(f"{url}: names no device; give device:/dev/video0 or one of {known}")
    if rest.startswith("/") and not os.path.exists(rest):  # noqa: PTH110 - which has no opinion on names too long
        raise UserError(f"{url}: there is no such device; `v4l2-ctl --list-devices` names those of this machine")
    return Place("device", url, rest, format)
