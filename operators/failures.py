"""Failures of what is asked outside: each has a name, which stands first in its error."""

from typing import Literal

from streams.errors import Permanent, Transient

Failing = Literal["timeout", "upstream", "refusal", "budget", "schema", "citation", "tool"]
MAX_CHARS = 500


def failure(name: Failing, why: str) -> Exception:
    """Transient for what may pass, `timeout` and `upstream`; else Permanent."""
    said = f"{name}: {' '.join(why.split())[:MAX_CHARS]}"
    return Transient(said) if name in ("timeout", "upstream") else Permanent(said)
