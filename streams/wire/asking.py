"""Asking a service (`streams.wire.service`), whichever of those who serve it is well.

Delivery guarantee: done at most once, except where who did it went down or was cut off in the middle: it is asked again
then, of another, so what must not be done twice carries a key.
"""

import anyio
import nats.errors
from nats.aio.msg import Msg

from streams.errors import Infeasible, LinkError, PenstockError, Transient, UserError
from streams.wire.ledger import HEADROOM_BYTES, TRACEPARENT
from streams.wire.link import Link
from streams.wire.service import ACCEPTED, BEAT, CODE, DECLINED, ERROR, OFFER, one_line

TAKE_S = 0.75  # how long an offer is waited for
UNHEARD_S = 3.5  # after which it is asked again


async def ask(link: Link, subject: str, payload: bytes, *, timeout_s: float, traceparent: str = "") -> bytes:
    """Ask whoever serves a subject; the reply. Raises UserError where the request is wrong, Transient where it cannot
    be answered now, LinkError where nobody serves it or answers within `timeout_s`, PenstockError where answering
    failed."""
    max_bytes = link.max_payload_bytes - HEADROOM_BYTES
    if len(payload) > max_bytes:
        raise UserError(f"{subject}: a request of {len(payload)} bytes; NATS carries {max_bytes} here")
    asking = _Asking(link, subject, payload, {TRACEPARENT: traceparent} if traceparent else {})
    try:
        with anyio.fail_after(timeout_s):
            reply = await asking.reply()
    except TimeoutError as error:
        raise LinkError(f"{subject}: no answer within {timeout_s:g} s") from error
    except (nats.errors.Error, OSError) as error:
        raise LinkError(f"cannot ask {subject}: {one_line(error)}") from error
    said = reply.headers or {}
    if said.get("Status") == "503":
        raise LinkError(f"nobody serves {subject}: start `penstock serve`")
    if CODE not in said and ERROR not in said:
        return reply.data
    line = said.get(ERROR) or f"{subject}: refused with code {said.get(CODE)}"
    match said.get(CODE):
        case "400":
            raise UserError(line)
        case "422":
            raise Infeasible(line)
        case "503":
            raise Transient(line)
    raise PenstockError(line)


class _Asking:
    """One request, until it is answered."""

    def __init__(self, link: Link, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        self._link = link
        self._subject = subject
        self._payload = payload
        self._headers = {**headers, OFFER: "?"}
        self._inbox = link.client.new_inbox()
        self._news = anyio.Event()
        self._offers: list[Msg] = []
        self._reply: Msg | None = None
        self._num_asked = 0
        self._doubt = False  # the connection is another

    async def reply(self) -> Msg:
        hearing = await self._link.client.hear(self._inbox, self._on_message)
        forget = self._link.on_reconnect(self._on_reconnect)
        try:
            while True:
                self._doubt = False
                self._num_asked += 1
                await self._link.client.publish(self._subject, self._payload, self._inbox, self._headers)
                if await self._is_taken() and (reply := await self._awaited()) is not None:
                    return reply
        finally:
            forget()
            await self._link.unsubscribe(hearing)

    async def _is_taken(self) -> bool:
        """Whether somebody does it now, or has answered: the first who offers to."""
        with anyio.move_on_after(TAKE_S):
            while not self._doubt:
                if self._reply is not None:
                    return True
                if self._offers:
                    await self._link.client.publish(self._offers.pop().reply, ACCEPTED)
                    return True
                await self._heard()
        return False

    async def _awaited(self) -> Msg | None:
        """The reply; None where nothing is heard of it any more."""
        while self._reply is None:
            with anyio.move_on_after(UNHEARD_S) as silence:
                await self._heard()
            if silence.cancelled_caught or self._doubt:
                return None
            while self._offers:  # of who thawed
                await self._link.client.publish(self._offers.pop().reply, DECLINED)
        return self._reply

    async def _heard(self) -> None:
        await self._news.wait()
        self._news = anyio.Event()

    def _on_message(self, message: Msg) -> None:
        headers = message.headers or {}
        if OFFER in headers:
            self._offers.append(message)
        elif headers.get("Status") == "503" and self._num_asked > 1:
            return  # there was somebody, who may come back
        elif BEAT not in headers:
            self._reply = message
        self._news.set()

    def _on_reconnect(self) -> None:
        self._doubt = True
        self._news.set()
