"""Who we are to a NATS server that is not our own, and who vouches for it, as the environment says.

| variable | what |
|---|---|
| `PENSTOCK_NATS_CREDENTIALS` | a file with the seed of a user's nkey, as `penstock keys` writes it |
| `PENSTOCK_NATS_CA` | a file with the certificates that servers' are checked against; without: the system's |

They are files, not values: a process's environment is seen by more than its files are, and workers inherit it.
"""

import os
import re
import ssl
from pathlib import Path
from typing import NamedTuple

from streams.errors import UserError
from streams.wire.nkeys import UserKey

CREDENTIALS, AUTHORITY = "PENSTOCK_NATS_CREDENTIALS", "PENSTOCK_NATS_CA"
MAX_FILE_BYTES = 1 << 20
INBOX = "# inbox:"
_INBOX = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Identity(NamedTuple):
    """None: not said. `inbox`: the first token of the subjects that answers come on."""

    key: UserKey | None = None
    inbox: str = "_INBOX"
    tls: ssl.SSLContext | None = None


def identity() -> Identity:
    """Raises UserError, with the variable and the file, for what cannot be used."""
    key, tls, inbox = None, None, Identity().inbox
    if path := os.environ.get(CREDENTIALS, ""):
        try:
            key, inbox = _key_of(_text(CREDENTIALS, path))
        except UserError as error:
            raise UserError(f"{CREDENTIALS}: {path}: {error}") from error
    if path := os.environ.get(AUTHORITY, ""):
        text = _text(AUTHORITY, path)
        try:
            tls = ssl.create_default_context(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise UserError(f"{AUTHORITY}: {path} has no certificates in PEM") from error
    return Identity(key, inbox, tls)


def _key_of(text: str) -> tuple[UserKey, str]:
    """Lines that begin with # are for people, but for the one that says the inbox. Raises UserError."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    seeds = [line for line in lines if not line.startswith("#")]
    said = next((line.removeprefix(INBOX).strip() for line in lines if line.startswith(INBOX)), Identity().inbox)
    if len(seeds) != 1 or not _INBOX.fullmatch(said):
        raise UserError("that is no file of a key: a line with a seed, and lines that begin with #")
    return UserKey.of_seed(seeds[0]), said


def _text(variable: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode("ascii")
    except OSError as error:
        raise UserError(f"{variable}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{variable}: {path} is no such file: it has other than ASCII in it") from error
