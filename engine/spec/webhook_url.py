"""The URL of a webhook: what it may be, and what of it may be shown. Pure.

Such a URL is a secret as a whole: services that take webhooks put tokens in the path or the query. Only where it points
is shown.
"""

from urllib.parse import SplitResult, urlsplit

from streams.errors import UserError

SECRET = "PENSTOCK_WEBHOOK_SECRET"  # variable: the key that nodes sign with
MAX_LENGTH = 2048
EXAMPLE = "https://example.org/answers"


def check_webhook(url: str) -> None:
    """Raises UserError where answers cannot be sent there; the message does not repeat it."""
    _parts(url)


def public_webhook(url: str) -> str:
    """The URL as it may be shown and logged: without path, query, user and password. Raises UserError as
    `check_webhook`."""
    parts = _parts(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _parts(url: str) -> SplitResult:
    if len(url) > MAX_LENGTH:
        raise UserError(f"webhook: {len(url)} characters; a URL has at most {MAX_LENGTH} here")
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"webhook: that is no URL answers can be sent to: it should look like {EXAMPLE}")
    return parts
