"""What doctor says of the room there is."""

from pathlib import Path

import pytest

from penstock.cli import doctor
from streams.wire import store as stores

pytestmark = pytest.mark.anyio
MIB = 1024**2


@pytest.mark.parametrize(
    ("room_bytes", "ok", "found", "advice"),
    [
        (100_000 * MIB, True, "may take 97.7 GiB of its disk", ""),
        (768 * MIB, True, "may take 768 MiB of its disk: new streams share it out, 44.2 GiB are wanted", "free some"),
        (75 * MIB, False, "may take 75 MiB of its disk", "at least 256 MiB: free some"),
    ],
)
async def test_doctor_says_how_much_the_store_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int, ok: bool, found: str, advice: str
) -> None:
    monkeypatch.setattr(stores, "room_bytes", lambda store: room_bytes)
    said = await doctor._room(None, tmp_path / "none yet")
    assert (said.ok, said.found) == (ok, f"{tmp_path / 'none yet'} {found}")
    assert advice in said.advice
    assert bool(advice) == bool(said.advice)


async def test_doctor_says_what_a_given_server_leaves(nats_url: str) -> None:
    said = await doctor._room(nats_url)
    assert said.ok
    assert said.found.endswith(" has no limit of its own")
