"""What the owner of this machine says in a TOML file: what there is here to be asked, and by which key. No workflow,
plan or log holds an address or a key; a plan has a name, and whoever computes looks up where that is."""

import os
import re
import tomllib
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from streams.errors import UserError
from streams.media.references import is_reference, secret

MAX_BYTES = 1 << 20

S = TypeVar("S", bound=msgspec.Struct)


def place(variable: str, name: str) -> Path:
    """Where such a file is, or would be: where the variable says, else in $XDG_CONFIG_HOME or ~/.config."""
    if named := os.environ.get(variable):
        return Path(named)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "penstock" / name


def stamp(variable: str, path: Path) -> int | None:
    """What changes when the file does; None where there is none. Raises UserError where the variable names one."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        if os.environ.get(variable):
            raise UserError(f"{path}, which ${variable} names, is not there") from None
        return None


def read(path: Path, kind: type[S]) -> S:
    """Raises UserError, in one line, for what is no such file."""
    try:
        with path.open("rb") as file:
            return msgspec.convert(tomllib.loads(file.read(MAX_BYTES).decode()), kind)
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: {why}; docs/models.md says what belongs there") from None


def check_address(path: Path, name: str, url: str, key: str) -> None:
    """Raises UserError for what is no place to ask at, or holds more than that."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{path}: the url of {name!r} is no http(s) address")
    if parts.username or parts.password or parts.query:
        raise UserError(f"{path}: the url of {name!r} holds more than a place: a key belongs in key")
    if key and not is_reference(key):
        raise UserError(f'{path}: the key of {name!r} stands there itself: write key = "${{NAME}}"')


def bearer(key: str) -> dict[str, str]:
    """The header with what a key refers to. Raises UserError, without any value, where it is not there or is none."""
    found = secret(key).strip()
    if not re.fullmatch(r"[\x21-\x7e]*", found):
        raise UserError(f"what {key} refers to is no key: it has other characters than a header may")
    return {"Authorization": f"Bearer {found}"} if found else {}


def without_secrets(text: str, key: str, url: str) -> str:
    """A text that may have come from there, with neither key nor address."""
    parts = urlsplit(url)
    return without(text, value_of(key), url, parts.netloc, parts.hostname or "")


def value_of(reference: str) -> str:
    """What it refers to; empty where that is not there."""
    try:
        return secret(reference).strip()
    except UserError:
        return ""


def without(text: str, *what: str) -> str:
    """A text with "..." in place of each, the longest first, for one may be part of another; also as JSON writes it."""
    for each in sorted({*what, *(msgspec.json.encode(one).decode()[1:-1] for one in what)}, key=len, reverse=True):
        text = text.replace(each, "...") if each else text
    return text
