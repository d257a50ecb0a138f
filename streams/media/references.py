"""References: what of a source's URL stands elsewhere, in the environment or in a file, so that passwords need not
stand in configurations, listings and buckets.

`${NAME}` is the variable NAME, `${file:/run/secrets/camera}` the text of a file, without the white space around it;
both are put in as text of a URL, quoted. They are filled in by whoever reads the source, when it does.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote

from streams.errors import UserError

MAX_BYTES = 65536
_REFERENCE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)|file:([^}]+))\}")


def refers(url: str) -> bool:
    return _REFERENCE.search(url) is not None


def is_reference(text: str) -> bool:
    """Whether it is a reference and nothing beside it."""
    return _REFERENCE.fullmatch(text) is not None


def filled_in(url: str) -> str:
    """The URL with what it refers to. Raises UserError, without any value, where that is not there."""
    return _REFERENCE.sub(lambda match: quote(_value(match), safe=""), url)


def secret(text: str) -> str:
    """A text that is no URL, with what it refers to. Raises UserError, without any value, where that is not there."""
    return _REFERENCE.sub(_value, text)


def as_if_filled_in(url: str) -> str:
    """A URL of the same shape, to be looked at where nothing of this is at hand."""
    return _REFERENCE.sub("x", url)


def _value(match: re.Match[str]) -> str:
    name, path = match[1], match[2]
    if name is not None:
        if name not in os.environ:
            raise UserError(f"${{{name}}}: there is no such variable in the environment of who reads the source")
        return os.environ[name]
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES).decode().strip()
    except (OSError, ValueError) as error:
        raise UserError(f"${{file:{path}}}: {getattr(error, 'strerror', None) or 'not text'}") from error
