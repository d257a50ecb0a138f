"""Uploads: the body of a request as a stream, or as something to run one capability on.

Delivery guarantee: what a 201 counts is stored. An upload to a durable stream that broke off may be sent again from its
beginning: what is stored already is not stored twice, other media are refused. One to a live stream goes on where it
broke off, after a gap. A body that is complete ends its stream. While the stream is held back, so is the client, by
TCP.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from litestar import Request

from engine.node.endpoints import Call, Output
from engine.node.ends import readable_end
from engine.node.feeding import Resume, Source, Tell, feed, treated
from engine.run.registry import LEASE_TTL_S
from engine.spec.stream import Policy, StreamSpec
from penstock.http import bodies
from penstock.http.face import Face
from penstock.http.problems import Refusal
from streams import subjects
from streams.errors import PenstockError, UserError, first_error
from streams.media.formats import STREAMABLE
from streams.media.pipe import Pipe, PipeClosed
from streams.media.probe import Opening, open_media
from streams.media.segmenter import stream_id
from streams.media.sources import read, read_bytes
from streams.records import EndOfStream, MediaMessage, Record, encode

SEGMENT_S = 5.0
MAX_LEASE_WAIT_S = LEASE_TTL_S + 2.0  # a feeder that was killed is forgotten within this
BODY = "the body"

Fill = Callable[[], Awaitable[None]]


class Uploaded(Record, frozen=True, omit_defaults=False):
    """What a stream has after an upload."""

    stream: str
    num_segments: int
    end_s: float  # media time reached
    flaws: tuple[str, ...] = ()


async def upload(
    face: Face, request: Request[Any, Any, Any], stream: str, policy: Policy | None, segment_s: float | None
) -> Uploaded:
    """Bring a body to a stream. Raises UserError for what is no media, Refusal for what HTTP has a status for."""
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        line = "the body is a form: send the file as it is, such as with `curl -T FILE URL` (not -F)"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, line)
    with face.soon():
        standing = await face.registry.stream(stream)
        try:
            spec = treated(standing, stream, policy, "durable", segment_s=segment_s)
        except UserError as error:
            if standing is None or not standing.url:
                raise
            raise Refusal(HTTPStatus.CONFLICT, str(error)) from error
        stored = await readable_end(face.ledger, spec.name)
    if stored is not None and spec.policy == "live":
        line = f"stream {spec.name!r} has ended after {stored.num_segments} segments: upload under another name"
        raise Refusal(HTTPStatus.CONFLICT, line)
    with face.uploading():
        if stored is not None:
            return _uploaded(spec, await _compared(face, request, spec))
        if standing is None:
            await face.registry.declare(spec)
        try:
            end = await _brought(face, request, spec)
        except UserError:
            if standing is None and await face.ledger.look(subjects.media_of(spec.name)) is None:
                await face.registry.forget_stream(spec.name)  # nothing came of it
            raise
    return _uploaded(spec, end)


def _uploaded(spec: StreamSpec, end: EndOfStream) -> Uploaded:
    return Uploaded(
        stream=spec.name, num_segments=end.num_segments, end_s=round(end.duration_ns / 1e9, 3), flaws=end.flaws
    )


async def run_on(
    face: Face, request: Request[Any, Any, Any], capability: str, params: dict[str, Any], timeout_s: float
) -> list[Output]:
    """Run one capability on a body. The stream it becomes is named by its content, so a body that was seen before is
    not cut again, nor is anything computed again that is still there."""
    with face.uploading():
        async with bodies.spooled(b"", bodies.pieces(request, face.limits)) as path:
            stream = await anyio.to_thread.run_sync(stream_id, path, SEGMENT_S)
            spec = StreamSpec(name=stream, policy="durable", segment_s=SEGMENT_S)
            if await readable_end(face.ledger, stream) is None:
                try:
                    await _fed(face, spec, partial(_from_file, path, spec))
                except UserError:
                    if await readable_end(face.ledger, stream) is None:  # nobody else has brought it meanwhile
                        raise
    return await face.services.call(capability, Call(stream=stream, params=params, timeout_s=timeout_s))


async def _brought(face: Face, request: Request[Any, Any, Any], spec: StreamSpec) -> EndOfStream:
    """Bring the body to the stream, as it comes or from a file; the stream's end."""
    body = bodies.pieces(request, face.limits)
    head, seeks = await bodies.begun(body)
    if seeks:
        async with bodies.spooled(head, body) as path:
            return await _fed(face, spec, partial(_from_file, path, spec))
    pipe = Pipe(BODY)
    return await _fed(face, spec, partial(_from_pipe, pipe, spec), partial(_fill, pipe, head, body))


async def _compared(face: Face, request: Request[Any, Any, Any], spec: StreamSpec) -> EndOfStream:
    """The end of a stream that is whole already, whose media the body is once more. Raises Refusal where it is not."""
    body = bodies.pieces(request, face.limits)
    head, seeks = await bodies.begun(body)
    standing = await _outermost(face, spec.name)
    stop = threading.Event()

    def read_all(records: Iterator[MediaMessage]) -> MediaMessage | None:
        last: MediaMessage | None = None
        for record in _same(spec.name, standing, records):
            last = record
        return last

    pipe = Pipe(BODY)
    try:
        if seeks:
            async with bodies.spooled(head, body) as path:
                last = await anyio.to_thread.run_sync(read_all, _from_file(path, spec, Resume(), stop))
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_fill, pipe, head, body)
                last = await anyio.to_thread.run_sync(read_all, _from_pipe(pipe, spec, Resume(), stop))
    except (UserError, ExceptionGroup) as error:
        cause = first_error(error)
        raise Refusal(HTTPStatus.CONFLICT, str(cause)) if type(cause) is UserError else cause from error
    finally:
        stop.set()
    if not isinstance(last, EndOfStream) or last.num_segments <= max(standing, default=-1):
        line = f"stream {spec.name!r} is whole already, with other media: upload under another name"
        raise Refusal(HTTPStatus.CONFLICT, line)
    return last


# --- feeding -------------------------------------------------------------------------------------------------------


async def _fed(
    face: Face,
    spec: StreamSpec,
    records: Callable[[Resume, threading.Event], Iterator[MediaMessage]],
    fill: Fill | None = None,
) -> EndOfStream:
    """Feed the stream, while `fill` brings the bytes; its end."""
    loop = asyncio.get_running_loop()
    holds = anyio.Event()
    standing = await _outermost(face, spec.name) if spec.policy == "durable" else {}
    failures: list[PenstockError] = []
    end: EndOfStream | None = None

    def read_on(resume: Resume, stop: threading.Event, tell: Tell) -> Iterator[MediaMessage]:
        loop.call_soon_threadsafe(holds.set)  # this may be the thread that reads
        return _same(spec.name, standing, records(resume, stop))

    async def give_up_waiting() -> None:
        with anyio.move_on_after(MAX_LEASE_WAIT_S):
            await holds.wait()
        if not holds.is_set():
            line = f"somebody else feeds stream {spec.name!r}: upload under another name"
            failures.append(Refusal(HTTPStatus.CONFLICT, line))
            tasks.cancel_scope.cancel()

    async def fill_it(fill: Fill) -> None:
        try:
            await fill()
        except PenstockError as error:  # nothing more is stored, neither a piece of a segment nor an end
            failures.append(error)
            tasks.cancel_scope.cancel()

    source = Source(read=read_on, goes_on=spec.policy == "live", waits=spec.policy == "durable")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up_waiting)
        if fill is not None:
            tasks.start_soon(fill_it, fill)
        try:
            end = await feed(face.registry, face.ledger, spec, source, face.id, face.traces)
        except PenstockError as error:
            failures.append(error)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if end is None:
        raise PenstockError(f"reading {BODY} stopped before its end")
    return end


async def _fill(pipe: Pipe, head: bytes, body: AsyncIterator[bytes]) -> None:
    """A body into a pipe, as there is room."""
    with suppress(PipeClosed):  # its reader says why
        await pipe.put(head)
        async for piece in body:
            await pipe.put(piece)
        pipe.close()


def _from_pipe(pipe: Pipe, spec: StreamSpec, resume: Resume, stop: threading.Event) -> Iterator[MediaMessage]:
    return read_bytes(
        pipe,
        spec.name,
        live=spec.policy == "live",
        stop=stop,
        target_s=spec.segment_s,
        first_index=resume.next_index,
        start_ns=resume.start_ns,
        transcode_gop_s=spec.gop_s,
    )


def _from_file(path: Path, spec: StreamSpec, resume: Resume, stop: threading.Event) -> Iterator[MediaMessage]:
    """A spooled body. It may be nothing that names other files or addresses, as playlists do."""
    try:
        with open_media(Opening(str(path), BODY, options={"format_whitelist": STREAMABLE})):
            pass
        yield from read(
            str(path),
            spec.name,
            live=False,
            stop=stop,
            target_s=spec.segment_s,
            first_index=resume.next_index,
            start_ns=resume.start_ns,
            transcode_gop_s=spec.gop_s,
        )
    except UserError as error:
        raise UserError(str(error).replace(str(path), BODY)) from error


async def _outermost(face: Face, stream: str) -> dict[int, bytes]:
    """The first and the last of the segments that a stream has, as they are stored, by number."""
    numbers = sorted(key.first for key in subjects.keys_of(await face.ledger.subjects(subjects.media_of(stream))))
    found = {number: await face.ledger.get(subjects.media(stream, number)) for number in {*numbers[:1], *numbers[-1:]}}
    return {number: stored.data for number, stored in found.items() if stored is not None}


def _same(stream: str, standing: Mapping[int, bytes], records: Iterator[MediaMessage]) -> Iterator[MediaMessage]:
    """The records, as long as they are those that are stored already. What differs is known before anything new is
    stored."""
    for number, record in enumerate(records):
        is_short = isinstance(record, EndOfStream) and number <= max(standing, default=-1)
        if is_short or (number in standing and encode(record) != standing[number]):
            raise UserError(f"stream {stream!r} holds other media, or these cut otherwise: upload under another name")
        yield record
