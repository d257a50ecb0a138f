"""The link over a real server: it says what went wrong, keeps secrets, and comes back."""

import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import nats.errors
import nats.js.errors
import pytest
import structlog
from conftest import Eventually
from nats.aio.msg import Msg

from streams.errors import LinkError, UserError
from streams.wire import link as link_module
from streams.wire.link import Refused, connect, without_credentials
from streams.wire.server import embedded
from streams.wire.store import status

pytestmark = pytest.mark.anyio
SECRETS = ("s3cr3t", "jane")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_server(store: Path) -> None:
    os.kill(status(store)["pid"], signal.SIGKILL)


async def refused_message(url: str) -> str:
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises((LinkError, UserError)) as refused,
        anyio.fail_after(6),
    ):
        async with connect(url):
            pass
    causes, error = list[str](), refused.value.__cause__
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    for text in (str(refused.value), str(logs), *causes):
        assert not any(secret in text for secret in SECRETS), text
    message = str(refused.value)
    assert "\n" not in message
    return message


async def test_a_server_that_is_not_there_is_reported_in_one_line() -> None:
    port = closed_port()
    message = await refused_message(f"nats://jane:s3cr3t@127.0.0.1:{port}")
    assert message.startswith(f"no NATS server answers at nats://127.0.0.1:{port}: ")
    assert message.endswith("start one or give --nats URL")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert link_module.REQUEST_TIMEOUT_S <= 5
    monkeypatch.setattr(link_module, "REQUEST_TIMEOUT_S", 0.5)


async def test_a_store_that_cannot_be_made_yet_is_waited_for_and_one_that_never_can_is_refused(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"code": 500, "err_code": 10049, "description": "error creating store for stream"}
    errors = [nats.js.errors.ServerError(**said)] * 2

    async def attempt() -> str:
        if errors:
            raise errors.pop()
        return "done"

    async with connect(nats_url) as link:
        assert await link.patiently(attempt, "this") == "done"
        monkeypatch.setattr("streams.wire.link.NO_STORE_S", 0.0)
        errors.append(nats.js.errors.ServerError(**said))
        with pytest.raises(Refused, match="this: error creating store for stream") as refused:
            await link.patiently(attempt, "this")
        assert refused.value.code == 10049


@pytest.mark.usefixtures("hasty")
async def test_a_server_that_never_speaks_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        message = await refused_message(f"nats://s3cr3t@127.0.0.1:{mute.getsockname()[1]}")
    assert "no NATS server answers at" in message


@pytest.mark.usefixtures("hasty")
async def test_a_wrong_token_is_reported_without_it(nats_url: str) -> None:
    place = without_credentials(nats_url)
    message = await refused_message(place.replace("://", "://s3cr3t@"))
    assert place in message
    assert nats_url.split("//")[1].split("@")[0] not in message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nats://",
        "jane:s3cr3t@host:4222",
        "http://jane:s3cr3t@host:4222",
        "nats://jane:s3cr3t/x@host:4222",
        "nats://jane:s3cr3t@host:port",
        "nats://jane:s3cr3t@[::1",
    ],
)
async def test_what_is_no_url_is_refused_without_repeating_it(url: str) -> None:
    assert "nats://host:4222" in await refused_message(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://jane:s3cr3t@host:1234", "nats://host:1234"),
        ("nats://s3cr3t@host", "nats://host:4222"),
        ("tls://host:5", "tls://host:5"),
    ],
)
def test_urls_are_shown_without_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


async def test_a_refusal_carries_its_code(nats_url: str) -> None:
    async with connect(nats_url) as link:
        with pytest.raises(Refused, match=r"STREAM\.INFO\.NOPE: stream not found") as refused:
            await link.api("STREAM.INFO.NOPE")
        assert refused.value.code == 10059
        with pytest.raises(Refused) as refused:
            await link.api("STREAM.CREATE.A", {"name": "B"})
        assert refused.value.code == 10056  # the names differ
        assert "account_info" in (await link.api("INFO"))["type"]


async def test_what_may_pass_is_tried_again_until_patience_ends(nats_url: str) -> None:
    tries: list[int] = []

    def failing(error: Exception, num_times: int) -> Callable[[], Awaitable[str]]:
        async def attempt() -> str:
            tries.append(1)
            if len(tries) <= num_times:
                raise error
            return "done"

        tries.clear()
        return attempt

    async with connect(nats_url, patience_s=0.3) as link:
        assert await link.patiently(failing(nats.errors.TimeoutError(), 2), "this") == "done"
        assert len(tries) == 3
        with pytest.raises(LinkError, match=r"this: gave up after 0 s: ") as given_up:
            await link.patiently(failing(nats.errors.NoRespondersError(), 10**6), "this")
        assert len(tries) > 1
        assert isinstance(given_up.value.__cause__, nats.errors.NoRespondersError)
        with pytest.raises(LinkError, match="this: "):
            await link.patiently(failing(nats.errors.MaxPayloadError(), 10**6), "this")
        assert len(tries) == 1


@pytest.mark.usefixtures("hasty")
async def test_a_link_outlives_its_server(tmp_path: Path, eventually: Eventually) -> None:
    called: list[str] = []
    received: list[bytes] = []

    async def on_message(message: Msg) -> None:
        received.append(message.data)

    async with embedded(tmp_path) as url, connect(url) as link:
        link.on_reconnect(lambda: called.append("kept"))
        end = link.on_reconnect(lambda: called.append("ended"))
        await link.subscribe("here", on_message)
        await link.publish("here", b"before")
        await eventually(lambda: received == [b"before"])
        kill_server(tmp_path)
        assert (await link.api("INFO"))["streams"] == 0  # waits for the new server
        await eventually(lambda: called == ["kept", "ended"])
        assert link.num_reconnects == 1
        await link.publish("here", b"after")
        await eventually(lambda: received == [b"before", b"after"])
        end()
        kill_server(tmp_path)
        await eventually(lambda: called == ["kept", "ended", "kept"])
        assert link.max_payload_bytes == 8 * 1024**2
        assert status(tmp_path)["url"] == url


async def test_nothing_can_be_sent_on_a_closed_link(nats_url: str) -> None:
    async with connect(nats_url) as link:
        pass
    with pytest.raises(LinkError, match="cannot publish on here"):
        await link.publish("here", b"")
    with pytest.raises(LinkError, match="INFO"):
        await link.api("INFO")


async def test_whoever_works_with_a_connection_that_is_closed_for_good_is_told(nats_url: str) -> None:
    """What the server says when a user is taken off its list: nats-py does not connect again after that."""
    with anyio.fail_after(20), pytest.raises(LinkError, match=r"ended the connection for good: .*[Aa]uthentication"):
        async with connect(nats_url) as link:
            await link.client._process_err("'User Authentication Expired'")
            await anyio.sleep_forever()
