"""How many cores a container is given."""

from pathlib import Path

import pytest

from penstock.places import allotted_cores


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("5000 100000", 1),
        ("1600000 100000", 16),
        ("0 0", 8),
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_a_quota_is_so_many_cores(tmp_path: Path, said: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(said)
    assert allotted_cores(8, tmp_path / "cpu.max") == cores


def test_without_a_quota_all_cores_are_there(tmp_path: Path) -> None:
    assert allotted_cores(8, tmp_path / "none") == 8
