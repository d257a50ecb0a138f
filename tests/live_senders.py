"""Programs that send media to us, as the world has them: the ffmpeg program, an RTSP server, a web server."""

import functools
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from streams.errors import UserError
from streams.media.srt import library

STATION = Path(__file__).parents[1] / "examples" / "station.mp4"
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's bindings of GStreamer belong to it

RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( filesrc location={sys.argv[2]} ! qtdemux name=d"
    " d.video_0 ! queue ! h264parse ! rtph264pay name=pay0 pt=96"
    " d.audio_0 ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97 )"
)
server.get_mount_points().add_factory("/camera", factory)
assert server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def needs_ffmpeg() -> str:
    """The path of the ffmpeg program; skips the test where there is none."""
    found = shutil.which("ffmpeg")
    if found is None:
        pytest.skip("there is no ffmpeg program on this machine to send with")
    return found


def needs_libsrt() -> None:
    """Skips the test where libsrt is not installed."""
    try:
        library()
    except UserError as error:
        pytest.skip(str(error))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_listener(port: int) -> None:
    """Until somebody listens on this TCP port. To connect would be to take the place of the one who is expected."""
    for _ in range(3000):
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines):
            return
        time.sleep(0.01)
    pytest.fail(f"nobody listens on port {port}")


@contextmanager
def ffmpeg(*arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    """The ffmpeg program at work; ended with the block, if it has not ended before."""
    command = [needs_ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def made_by_ffmpeg(path: Path, *arguments: object) -> Path:
    """What the ffmpeg program writes to `path`."""
    command = [needs_ffmpeg(), "-v", "error", "-nostdin", "-y", *map(str, arguments), str(path)]
    subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)
    return path


@contextmanager
def rtsp_server(port: int, path: Path = STATION) -> Iterator["subprocess.Popen[bytes]"]:
    """An RTSP server with `path` at rtsp://127.0.0.1:port/camera, ready; killed with the block."""
    process = subprocess.Popen(
        [SYSTEM_PYTHON, "-c", RTSP_SERVER, str(port), str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            pytest.skip("there is no GStreamer RTSP server on this machine (gir1.2-gst-rtsp-server-1.0, python3-gi)")
        yield process
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def web_server(folder: Path, is_endless: bool = False) -> Iterator[str]:
    """A web server over a folder; gives its URL. With `is_endless` it does not say how long what it sends is."""
    handler = functools.partial(_Endless if is_endless else _Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join(10)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Endless(_Quiet):
    """Sends a file as a live server does: until the connection closes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(Path(self.translate_path(self.path)).read_bytes())
