"""Ends: whether a stream has ended, as the ledger has it."""

import structlog

from streams import subjects
from streams.errors import Malformed
from streams.records import EndOfStream, decode_media
from streams.wire.ledger import Ledger

log = structlog.get_logger(__name__)


async def readable_end(ledger: Ledger, stream: str) -> EndOfStream | None:
    """As `stored_end`; one that cannot be read is set aside, and said."""
    try:
        return await stored_end(ledger, stream)
    except Malformed as error:
        log.warning("cannot_read_end", stream=stream, error=str(error))
        return None


async def stored_end(ledger: Ledger, stream: str) -> EndOfStream | None:
    """The end of a stream, if it is stored. Raises Malformed where it cannot be read."""
    stored = await ledger.get(subjects.media_end(stream))
    try:
        end = decode_media(stored.data) if stored is not None else None
    except Malformed as error:
        raise Malformed(f"the end of stream {stream} cannot be read from the ledger: {error}") from error
    return end if isinstance(end, EndOfStream) else None
