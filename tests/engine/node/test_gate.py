"""What a node opens for others: files, addresses, redirects and playlists."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import anyio.to_thread
import clips
import httpx
import pytest

from engine.node.feeding import Resume, source_of
from engine.node.gate import Gate
from engine.spec.access import Access
from engine.spec.stream import StreamSpec
from streams.errors import UserError
from streams.media.addresses import place_of
from streams.media.egress import egress
from streams.records import EndOfStream, Segment

INSIDE, OUTSIDE = "127.0.0.2", "127.0.0.1"  # what is closed to others, and what is open


class Web:
    """A web server: what it holds by path, and what it was asked for."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.holds: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@contextmanager
def web(host: str) -> Iterator[Web]:
    here = Web(host)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            if self.path in here.redirects:
                self.send_response(302)
                self.send_header("Location", here.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = here.holds.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    here.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["/etc/passwd", "file:///etc/passwd", "/no/such/file", "relative.mp4", "-", "device:/dev/video0", "device:alsa:hw"],
)
def test_nothing_of_the_machine_is_open_unless_it_is_said(url: str) -> None:
    with pytest.raises(UserError, match=r"^url: [^\n]*$"):
        Gate().check(url)


def test_what_is_not_there_and_what_is_not_theirs_have_one_answer(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "a.mp4").touch()
    (tmp_path / "secret.mp4").touch()
    (folder / "way-out.mp4").symlink_to(tmp_path / "secret.mp4")
    gate = Gate(Access(paths=(str(folder),)))
    gate.check(str(folder / "a.mp4"))
    gate.check(f"file://{folder}/a.mp4")
    said = set()
    for url in (
        tmp_path / "secret.mp4",
        tmp_path / "nothing.mp4",
        folder / "nothing.mp4",
        folder / ".." / "secret.mp4",
        folder / "way-out.mp4",
        Path("/"),
    ):
        with pytest.raises(UserError) as refused:
            gate.check(str(url))
        said.add(str(refused.value).replace(str(url), "X"))
    assert len(said) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.mp4",
        "http://[::1]:8080/a.mp4",
        "rtsp://169.254.169.254/x",
        "rtmp://192.168.1.1/live",
        "srt://10.0.0.1:9000",
        "udp://0.0.0.0:5000",
        "srt://0.0.0.0:9000?mode=listener",
        "rtmp://0.0.0.0/live?listen=1",
    ],
)
def test_closed_addresses_and_listening_are_refused_when_they_are_declared(url: str) -> None:
    with pytest.raises(UserError, match=r"penstock\.toml"):
        Gate().check(url)


def test_what_is_allowed_is_let_through() -> None:
    gate = Gate(Access(networks=("127.0.0.0/8",), listen=True, devices=True))
    for url in ("http://127.0.0.1/a.mp4", "udp://0.0.0.0:5000", "rtsp://localhost/x", "http://example.org/a.m3u8"):
        gate.check(url)
    assert gate.through(place_of("rtsp://u:p@localhost:554/x?y=z")).source == "rtsp://u:p@127.0.0.1:554/x?y=z"
    with pytest.raises(UserError, match="cannot be reached from this node, or may not be"):
        Gate().through(place_of("rtsp://localhost:554/x"))
    with pytest.raises(UserError, match="makes no connections for others"):
        gate.through(place_of("http://127.0.0.1/a.mp4"))


def test_the_users_own_streams_are_read_as_they_are() -> None:
    mine = StreamSpec(name="door", url="rtsp://192.168.1.5/1")
    assert Gate().of(mine) is None
    gate = Gate(trusts_registry=False, own={"door": mine.url})
    assert gate.of(mine) is None
    for other in (StreamSpec(name="x", url=mine.url), StreamSpec(name="door", url="/etc/passwd")):
        with pytest.raises(UserError):
            gate.of(other)
    with pytest.raises(UserError):
        Gate().of(StreamSpec(name="x", url="/etc/passwd", confined=True))


async def read_confined(gate: Gate, url: str) -> int:
    """How many segments are had for somebody else."""
    spec = StreamSpec(name="s", url=url, confined=True)
    source = source_of(spec, url, gate.of(spec))

    def read() -> int:
        records = list(source.read(Resume(), threading.Event(), lambda told, detail: None))
        assert isinstance(records[-1], EndOfStream)
        return sum(isinstance(record, Segment) for record in records)

    return await anyio.to_thread.run_sync(read)


needs_loopback = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on loopback")


@needs_loopback
@pytest.mark.anyio
async def test_redirects_and_playlists_lead_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = clips.first_seconds(tmp_path / "clip.ts", 2.0).read_bytes()
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2,localhost")
    gate = Gate(Access(networks=(f"{OUTSIDE}/32",)))
    with web(INSIDE) as inside, web(OUTSIDE) as outside:
        inside.holds["/clip.ts"] = outside.holds["/clip.ts"] = clip
        outside.redirects["/within.ts"] = "/clip.ts"
        outside.redirects["/away.ts"] = f"{inside.url}/clip.ts"
        playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}/clip.ts\n#EXT-X-ENDLIST\n"
        outside.holds["/good.m3u8"] = playlist.format(outside.url).encode()
        outside.holds["/bad.m3u8"] = playlist.format(inside.url).encode()
        outside.holds["/file.m3u8"] = playlist.format("file://" + str(tmp_path)).encode()
        async with gate.open():
            assert "no_proxy" not in os.environ
            for path in ("/clip.ts", "/within.ts", "/good.m3u8"):
                assert await read_confined(gate, outside.url + path) > 0
            for path in ("/away.ts", "/bad.m3u8", "/file.m3u8"):
                with pytest.raises(UserError):
                    await read_confined(gate, outside.url + path)
            with pytest.raises(UserError):
                await read_confined(gate, f"{inside.url}/clip.ts")
        assert inside.asked == []


@needs_loopback
@pytest.mark.anyio
async def test_the_proxy_serves_those_who_know_its_password_and_only_where_it_may(tmp_path: Path) -> None:
    async with egress(lambda address: address == OUTSIDE) as proxy:
        with web(INSIDE) as inside, web(OUTSIDE) as outside:
            outside.holds["/x?y=1"] = b"z" * 200_000
            async with httpx.AsyncClient(proxy=proxy, trust_env=False) as client:
                response = await client.get(f"{outside.url}/x?y=1")
                assert (response.status_code, len(response.content)) == (200, 200_000)
                assert (await client.get(f"{inside.url}/x")).status_code == 403
                assert (await client.get("http://no-such-name.invalid/")).status_code == 403
                assert (await client.get(f"http://{OUTSIDE}:1/")).status_code == 502
            anonymous = proxy.replace(proxy.partition("//")[2].partition("@")[0] + "@", "")
            async with httpx.AsyncClient(proxy=anonymous, trust_env=False) as client:
                assert (await client.get(f"{outside.url}/x?y=1")).status_code == 407
                with pytest.raises(httpx.ProxyError):
                    await client.get("https://127.0.0.1/")
            assert inside.asked == []
            assert outside.asked == ["/x?y=1"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:99999 HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"GET ftp://127.0.0.1/ HTTP/1.1\r\n\r\n",
        b"\xff\x00\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 100_000,
    ],
)
async def test_nonsense_is_refused_and_the_next_is_served(said: bytes) -> None:
    async with egress(lambda address: True) as proxy:
        with web(OUTSIDE) as outside:
            outside.holds["/"] = b"there"
            async with await anyio.connect_tcp("127.0.0.1", int(proxy.rpartition(":")[2])) as client:
                await client.send(said)
                await client.send_eof()
                answer = b""
                try:
                    while True:
                        answer += await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
                assert answer[:10] in (b"", b"HTTP/1.1 4")
            async with httpx.AsyncClient(proxy=proxy, trust_env=False) as good:
                assert (await good.get(outside.url + "/")).text == "there"
