"""A few faults of every part, one after the other: nothing is lost, nothing comes twice, and the ledger is as it would
be had nothing happened. `bench/faults.py` runs two hundred."""

from pathlib import Path

import faults
import hosts
import pytest

pytestmark = pytest.mark.anyio
SEED = 4
KINDS = ("server killed", "node frozen", "results purged", "clock jumps")


async def test_nothing_is_lost_or_comes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why := hosts.why_none() or faults.why_not():
        pytest.skip(why)
    monkeypatch.setattr(faults, "KINDS", {kind: faults.KINDS[kind] for kind in KINDS})
    monkeypatch.setattr(faults, "LASTS_S", (0.5, 1.5))
    outcome = await faults.run_faults(tmp_path, SEED, len(KINDS))
    assert not outcome.wrong
    assert (outcome.num_lost, outcome.num_twice, outcome.num_different, outcome.num_refused) == (0, 0, 0, 0)
    assert outcome.num_segments > 20
    assert outcome.num_answers >= outcome.num_segments
