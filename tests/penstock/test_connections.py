"""Connections that say nothing, or never come to an end, or are too many."""

import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import anyio
import anyio.to_thread
import httpx
import pytest
from sites import site

from penstock.http.connections import OTHER_FILES, files_for

pytestmark = pytest.mark.anyio


@contextmanager
def connected(url: str, peer: str = "127.0.0.1") -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30, source_address=(peer, 0)) as client:
        yield client


def read(client: socket.socket) -> bytes:
    """What comes until the other side ends it."""
    said = b""
    try:
        while piece := client.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


async def test_who_says_nothing_is_cut_off(nats_url: str) -> None:
    async with site(nats_url, works=False, head_s=0.2) as here:
        with connected(here.url) as client:
            assert await anyio.to_thread.run_sync(read, client) == b""


async def test_a_head_without_end_is_cut_off(nats_url: str) -> None:
    async with site(nats_url, works=False, head_s=0.3) as here:
        with connected(here.url) as client:

            def trickle() -> int:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
                for number in range(100_000):
                    try:
                        client.sendall(b"X-%d: 1\r\n" % number if number % 50 == 0 else b"")
                        client.settimeout(0.01)
                        if client.recv(1) == b"":
                            return number
                    except TimeoutError:
                        continue
                    except OSError:
                        return number
                return -1

            assert await anyio.to_thread.run_sync(trickle) >= 0


async def test_a_connection_that_is_used_outlives_the_time_for_a_head(nats_url: str) -> None:
    async with site(nats_url, works=False, head_s=0.2, keep_alive_s=0.1) as here, anyio.create_task_group() as tasks:
        events = anyio.Event()

        async def follow() -> None:
            async with here.http.stream("GET", "/v1/answers", params={"stream": "s"}) as response:
                num_signs = 0
                async for line in response.aiter_lines():
                    num_signs += line.startswith(":")
                    if num_signs == 5:
                        events.set()
                        return

        tasks.start_soon(follow)
        with anyio.fail_after(30):
            await events.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on loopback")
async def test_idle_connections_make_room_for_one_that_asks(nats_url: str) -> None:
    async with site(nats_url, works=False, max_connections=20, head_s=60.0) as here:
        with ExitStack() as idle:
            for peer in ("127.0.0.2", "127.0.0.3"):
                for _ in range(30):
                    idle.enter_context(connected(here.url, peer))
            for _ in range(5):
                async with httpx.AsyncClient(base_url=here.url, trust_env=False) as client:
                    assert (await client.get("/healthz")).status_code == 200
            with connected(here.url, "127.0.0.3") as over:  # it has its part
                over.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert (await anyio.to_thread.run_sync(read, over))[:12] in (b"HTTP/1.1 503", b"")


def test_the_limit_of_files_bounds_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]

    def set_limit(_: int, pair: tuple[int, int]) -> None:
        limits[0] = pair

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[0])
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert files_for(2048) == 2048
    assert limits[0] == (2048 + OTHER_FILES, 4096)
    limits[0] = (256, 512)
    assert files_for(2048) == 512 - OTHER_FILES
    limits[0] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert files_for(2048) == 2048
