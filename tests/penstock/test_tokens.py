"""The token: who is asked for it, and who is let in."""

import stat
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from conftest import Eventually
from sites import serving, site

from penstock.tokens import FILE, TOKEN, asked_for, bears, known_token, token_of
from streams.errors import UserError

SECRET = "s3cret-of-sixteen"


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    store = tmp_path / "store"
    assert known_token(store) is None
    token = token_of(store)
    assert token == token_of(store) == known_token(store)
    assert len(token) >= 40
    assert stat.S_IMODE((store / FILE).stat().st_mode) == 0o600
    monkeypatch.setenv(TOKEN, f" {SECRET}\n")
    assert token_of(store) == known_token(store) == SECRET


@pytest.mark.parametrize("given", ["", "short", "has a blank in it, long", "ümlaute-sind-nicht-erlaubt"])
def test_what_is_no_token_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(TOKEN, given)
    with pytest.raises(UserError, match=f"^{TOKEN}: that is no token: give at least 16"):
        known_token(tmp_path)
    monkeypatch.delenv(TOKEN)
    (tmp_path / FILE).write_text(given)
    with pytest.raises(UserError, match="that is no token"):
        token_of(tmp_path)


@pytest.mark.parametrize(
    ("auth", "host", "expected"),
    [
        ("auto", "127.0.0.1", None),
        ("auto", "127.8.8.8", None),
        ("auto", "::1", None),
        ("auto", "0.0.0.0", SECRET),
        ("auto", "::", SECRET),
        ("auto", "192.168.1.2", SECRET),
        ("auto", "fe80::1%eth0", SECRET),
        ("always", "127.0.0.1", SECRET),
        ("off", "0.0.0.0", None),
    ],
)
def test_who_can_be_reached_from_elsewhere_asks_for_it(auth: Any, host: str, expected: str | None) -> None:
    assert asked_for(auth, f"{host}:80", host, SECRET) == expected
    if expected is not None:
        with pytest.raises(UserError, match="make one with `penstock token`"):
            asked_for(auth, f"{host}:80", host, None)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"Bearer {SECRET}", True),
        (f"bearer  {SECRET} ", True),
        (f"Bearer {SECRET}x", False),
        (f"Bearer {SECRET[:-1]}", False),
        (f"Basic {SECRET}", False),
        (SECRET, False),
        ("Bearer", False),
        ("", False),
        ("Bearer ümläut", False),
    ],
)
def test_a_request_bears_it_or_does_not(header: str, expected: bool) -> None:
    assert bears(header.encode(), SECRET) is expected


@pytest.mark.anyio
async def test_without_the_token_nothing_is_answered_but_the_probes(nats_url: str, eventually: Eventually) -> None:
    async with (
        site(nats_url) as here,
        serving(here.services, here.registry, here.ledger, auth="always", token=SECRET) as url,
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
    ):
        known = {"Authorization": f"Bearer {SECRET}"}
        while (await client.get("/readyz", headers=known)).status_code != 200:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        await here.ledger.link.jetstream.publish("$KV.penstock_jobs.bad", b"no job")
        for method, path in (
            ("GET", "/v1/jobs"),
            ("POST", "/v1/jobs"),
            ("PUT", "/v1/streams/x"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/nowhere"),
            ("POST", "/healthz"),
            ("GET", "/healthz/"),
            ("GET", "//healthz"),
        ):
            refused = await client.request(method, path, headers={"Authorization": "Bearer wrong-wrong-wrong"})
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer"), path
            assert "penstock token" in refused.json()["detail"]
        assert (await client.get("/healthz")).json() == {"status": "up"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.get("/readyz", headers=known)).json()["detail"]
        assert (await client.get("/v1/jobs", headers=known)).status_code == 200


@pytest.mark.anyio
async def test_a_node_that_others_can_reach_does_not_start_without_a_token(nats_url: str) -> None:
    async with site(nats_url, works=False) as here:
        with pytest.raises(ExceptionGroup) as refused:
            async with serving(here.services, here.registry, here.ledger, place="0.0.0.0:0"):
                pass
        assert refused.group_contains(UserError, match="^--http 0.0.0.0:0 can be reached from other machines")
