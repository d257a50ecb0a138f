"""Secrets that tests plant, to see that they are nowhere afterwards."""

from pathlib import Path


def nothing_holds(secret: str, folder: Path) -> bool:
    return not any(
        secret.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()
    )
