"""The body of a request as bytes that come, and on disk where they must be jumped about in.

Nothing is held in memory but the piece at hand and, until it is known what it is, the first HEAD_BYTES. An MP4 or MOV
file is a row of boxes; its samples (`mdat`) cannot be read before its index (`moov`). Recorders write the index last:
such a file is spooled to a temporary file first. Source: ISO/IEC 14496-12, 4.2 (boxes), 8.1.1 (mdat), 8.2.1 (moov).
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from litestar import Request

from penstock.http.face import MAX_UPLOAD_BYTES, Limits
from penstock.http.problems import Refusal

HEAD_BYTES = 1 << 20
BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"pnot", b"pdin"})


class Gone(Refusal):
    """The client went away before it had sent all: nobody will read the response."""

    def __init__(self) -> None:
        super().__init__(HTTPStatus.BAD_REQUEST, "the body ended before it was complete")


async def pieces(request: Request[Any, Any, Any], limits: Limits) -> AsyncIterator[bytes]:
    """The body, piece by piece, read as they are asked for. Raises Refusal where it is too large or its sender says
    nothing, Gone where the sender has gone."""
    _refuse_beyond(limits, int(request.headers.get("content-length", "0")))
    num_bytes, has_more = 0, True
    while has_more:
        message: Any = None
        with anyio.move_on_after(limits.stall_s):
            message = await request.receive()
        if message is None:
            line = f"no byte came for {limits.stall_s:g} s: send the body without such pauses"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, line)
        if message["type"] != "http.request":
            raise Gone
        piece: bytes = message["body"]
        num_bytes += len(piece)
        _refuse_beyond(limits, num_bytes)
        if piece:
            yield piece
        has_more = message.get("more_body", False)


def _refuse_beyond(limits: Limits, num_bytes: int) -> None:
    if num_bytes > limits.max_upload_bytes:
        line = f"more than {limits.max_upload_bytes} bytes: send less, or set {MAX_UPLOAD_BYTES} on the node"
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)


async def begun(body: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """The first bytes of a body, and whether it must be jumped about in."""
    head = b""
    while (seeks := must_seek(head)) is None and len(head) < HEAD_BYTES:
        piece = await anext(body, b"")
        if not piece:
            return head, False
        head += piece
    return head, seeks is not False


def must_seek(head: bytes) -> bool | None:
    """Whether what begins so is an MP4 or MOV file with its samples before its index; None where more of it has to be
    seen. Pure."""
    at = 0
    while at + 16 <= len(head):
        size, kind = int.from_bytes(head[at : at + 4]), head[at + 4 : at + 8]
        if kind in (b"moov", b"moof") or (at == 0 and kind not in BOXES):
            return False
        if kind == b"mdat":
            return True
        if size == 1:  # the size stands behind the kind, in 64 bits
            size = int.from_bytes(head[at + 8 : at + 16])
        if size < 8:  # to the end of the file, or no box at all
            return False
        at += size
    return None


@asynccontextmanager
async def spooled(head: bytes, body: AsyncIterator[bytes]) -> AsyncIterator[Path]:
    """A body in a temporary file, which is removed in the end. Raises Refusal where the disk is full."""
    limiter = anyio.CapacityLimiter(1)  # its own: threads that wait for other uploads must not hold it up
    file = tempfile.NamedTemporaryFile(prefix="penstock-upload-")  # noqa: SIM115 - closed below
    try:
        try:
            await anyio.to_thread.run_sync(file.write, head, limiter=limiter)
            async for piece in body:
                await anyio.to_thread.run_sync(file.write, piece, limiter=limiter)
            await anyio.to_thread.run_sync(file.flush, limiter=limiter)
        except OSError as error:
            line = f"no room for it in {tempfile.gettempdir()} ({error.strerror}): try another node, or send less"
            raise Refusal(HTTPStatus.INSUFFICIENT_STORAGE, line) from error
        yield Path(file.name)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(file.close, limiter=limiter)
