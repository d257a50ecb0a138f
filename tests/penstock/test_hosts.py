"""The names that a node answers to."""

import pytest

from penstock.http.hosts import HOSTS, is_ours, own_names
from streams.errors import UserError

NAMES = frozenset({"localhost", "box", "penstock.example"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8080",
        "192.168.1.5:80",
        "[::1]",
        "[::1]:8080",
        "::1",
        "box:8080",
        "Penstock.Example",
        "a.localhost:8080",
        "",
    ],
)
def test_addresses_and_own_names_are_ours(host: str) -> None:
    assert is_ours(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "box.evil.example",
        "evillocalhost",
        "1",
        "[evil.example]",
        "[::1",
        "localhost@evil.example",
        "evil.example:localhost:80",
    ],
)
def test_all_others_are_not(host: str) -> None:
    assert not is_ours(host, NAMES)


def test_names_are_told_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOSTS, " Penstock.example, proxy ,")
    assert {"localhost", "penstock.example", "proxy"} <= own_names()
    for bad in ("http://a", "a:80", "a b", "-a", "*"):
        monkeypatch.setenv(HOSTS, bad)
        with pytest.raises(UserError, match=f"{HOSTS}: .* is no name of a host"):
            own_names()
