"""Answers over HTTP, as they come (Server-Sent Events) or as many as there are.

Delivery guarantee: a client that comes back with the id of the last event it saw (Last-Event-ID, as browsers do by
themselves) misses none and sees none twice, whichever node it asks: ids are sequences of the ledger. Nothing is held
for a client: the next answer is read from the ledger when the one before is on its way, so one that reads slowly costs
a socket's buffer, and one that does not read at all is cut off (see server.py).

Source: HTML Living Standard, 9.2 Server-sent events.
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Any

import anyio
import msgspec
import structlog
from litestar.response.base import ASGIResponse

from engine.node.views import JobView, job_view
from engine.spec.jobs import BUCKET
from penstock.http.face import Face
from penstock.http.problems import Refusal
from streams import subjects
from streams.errors import PenstockError, UserError
from streams.wire.follow import follow

log = structlog.get_logger(__name__)

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2000  # after which a client whose connection broke comes back
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter: proxies pass each event on at once

_LINE_BREAK = re.compile(rb"\r\n|\r|\n")


def event(kind: str, data: bytes, seq: int | None = None) -> bytes:
    """One event on the wire."""
    id = b"" if seq is None else b"id: %d\n" % seq
    lines = b"".join(b"data: %s\n" % line for line in _LINE_BREAK.split(data))
    return id + b"event: %s\n" % kind.encode() + lines + b"\n"


class AnswerEvents(ASGIResponse):
    """Answers stored behind a sequence, those to come included. Of one `job`, until it has ended."""

    _should_set_content_length = False

    def __init__(self, face: Face, subject: str, after: int, job: str = "") -> None:
        super().__init__(media_type=MEDIA_TYPE, headers=HEADERS)
        self._face = face
        self._subject = subject
        self._after = after
        self._job = job
        self._said_s = 0.0
        self._saying = anyio.Lock()

    async def send_body(self, send: Any, receive: Any) -> None:
        say = partial(self._say, send)
        self._said_s = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def until(over: Callable[[], Awaitable[Any]]) -> None:
                await over()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until, partial(_gone, receive))
            tasks.start_soon(until, self._face.closing.wait)
            tasks.start_soon(self._keep_alive, say)
            await say(b"retry: %d\n\n" % RETRY_MS)
            try:
                await self._tell(say)
            except PenstockError as error:  # the client comes back, perhaps to another node
                log.warning("events_broken_off", subject=self._subject, error=str(error))
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, say: Callable[[bytes], Awaitable[None]]) -> None:
        is_over, hint = (self._is_over, f"$KV.{BUCKET}.{self._job}") if self._job else (None, "")
        answers = follow(self._face.ledger, self._subject, self._after, is_over, hint)
        async with aclosing(answers):
            async for stored in answers:
                await say(event("answer", stored.data, stored.seq))
        if (view := await self._view()) is not None:
            await say(event("end", msgspec.json.encode(view)))

    async def _keep_alive(self, say: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            silent_s = anyio.current_time() - self._said_s
            if silent_s >= self._face.limits.keep_alive_s:
                await say(KEEP_ALIVE)
                silent_s = 0.0
            await anyio.sleep(self._face.limits.keep_alive_s - silent_s)

    async def _say(self, send: Any, data: bytes) -> None:
        async with self._saying:
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._said_s = anyio.current_time()

    async def _is_over(self) -> bool:
        view = await self._view()
        return view is None or view.state != "running"

    async def _view(self) -> JobView | None:
        """The job as it is; None where it has been forgotten."""
        try:
            return job_view(await self._face.registry.job(self._job))
        except UserError:
            return None


class AnswerList(ASGIResponse):
    """The answers stored so far behind a sequence, as a JSON array that is written as it is read."""

    _should_set_content_length = False

    def __init__(self, face: Face, subject: str, after: int) -> None:
        super().__init__(media_type="application/json", headers={"Cache-Control": "no-store"})
        self._face = face
        self._subject = subject
        self._after = after

    async def send_body(self, send: Any, receive: Any) -> None:
        between = b"["
        last = await self._face.ledger.last_seq(self._subject)
        seq = self._after
        while seq < last and (noted := await self._face.ledger.next(self._subject, seq + 1)) is not None:
            seq = noted.record.seq
            await send({"type": "http.response.body", "body": between + noted.record.data, "more_body": True})
            between = b","
        end = b"]" if between == b"," else b"[]"
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def resumes_after(face: Face, subject: str, last_event_id: str | None, after: int | None) -> int:
    """Where a client goes on: behind the event it saw last, which a browser knows best. Settled before the response
    begins: from now on means from the request."""
    if last_event_id:
        if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 19):
            line = f"Last-Event-ID: {last_event_id!r}: give the id of the last event, a number"
            raise Refusal(HTTPStatus.BAD_REQUEST, line)
        return int(last_event_id)
    if after is not None and after < 0:
        return await face.ledger.last_seq(subject)
    return after or 0


def answers_of(job: str, stream: str) -> str:
    """The subject of answers of a job and a stream; of all, where they are empty."""
    return subjects.answers(subjects.token(job) if job else "*", subjects.token(stream) if stream else "*")


async def _gone(receive: Any) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
