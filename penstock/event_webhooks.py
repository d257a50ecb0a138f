"""Webhooks of streams: what a stream's source is doing, POSTed as JSON to the URL that the stream names.

Delivery guarantee: the last state is sent at least once, until the receiver has answered 2xx: again after a pause that
doubles from `first_pause_s` to `max_pause_s`, or after what `Retry-After` says within that. A state that another has
followed is not sent any more, so a receiver that was away for a day gets one event. A node that takes a stream over, or
begins, sends the state that stands; the key tells that it is the same. 410 (Gone) ends it until the stream is declared
anew.

| header | what |
|---|---|
| `Idempotency-Key` | `<stream>-<since>-<state>-<error's hash>`: the same for every attempt, and for no other state |
| `Penstock-Stream` | the stream |

The body is what `penstock.events.<stream>` says. Signed as `penstock.posting` says.
"""

import hashlib
from http import HTTPStatus
from random import Random

import anyio
import msgspec
import structlog

from engine.decide.watching import SourceState
from engine.node.gate import Gate
from engine.run.registry import Registry
from engine.spec.stream import StreamSpec
from engine.spec.webhook_url import check_webhook, public_webhook
from penstock.posting import Posting
from penstock.webhooks import Pace
from streams.errors import PenstockError, UserError

log = structlog.get_logger(__name__)


class EventWebhooks:
    """Made for one node."""

    def __init__(
        self,
        registry: Registry,
        secret: str | None = None,
        pace: Pace | None = None,
        random: Random | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._registry = registry
        self._pace = pace or Pace()
        self._posting = Posting(self._pace.request_s, secret)
        self._random = random or Random()
        self._gate = gate or Gate()

    async def send(self, spec: StreamSpec) -> None:
        """Send a stream's states until nobody wants any more."""
        try:
            check_webhook(spec.webhook)
            proxy = self._gate.proxy if spec.confined or not self._gate.trusts_registry else None
        except UserError as error:
            log.error("no_webhook", stream=spec.name, error=str(error))
            return
        told, pause_s = "", self._pace.first_pause_s
        async with self._registry.source_changes() as wait, self._posting.client(proxy) as client:
            while True:
                state = await self._state(spec.name)
                if state is None or key_of(state) == told:
                    await wait()
                    continue
                headers = {"Idempotency-Key": key_of(state), "Penstock-Stream": spec.name}
                status, asked_s, reason = await self._posting.post(
                    client, spec.webhook, msgspec.json.encode(state), headers
                )
                if 200 <= status < 300:
                    told, pause_s = key_of(state), self._pace.first_pause_s
                    continue
                if status == HTTPStatus.GONE:
                    log.warning("webhook_gone", stream=spec.name, to=public_webhook(spec.webhook))
                    return
                wanted_s = max(pause_s * self._random.uniform(0.5, 1.5), min(asked_s, self._pace.max_pause_s))
                log.info("webhook_refused", stream=spec.name, reason=reason, pause_s=round(wanted_s, 3))
                await anyio.sleep(wanted_s)
                pause_s = min(2 * pause_s, self._pace.max_pause_s)

    async def _state(self, stream: str) -> SourceState | None:
        try:
            return await self._registry.source_state(stream)
        except PenstockError as error:
            log.warning("cannot_read_state", stream=stream, error=str(error))
            return None


def key_of(state: SourceState) -> str:
    """The same for the same state, whoever sends it."""
    said = hashlib.sha256(state.error.encode()).hexdigest()[:8]
    return f"{state.stream}-{state.since_ns}-{state.state}-{said}"
