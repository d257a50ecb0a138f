"""Webhooks: the answers of a job, each POSTed as JSON to the URL that the job names.

Delivery guarantee: at least once and in order, over restarts and from node to node: an answer is done with when the
receiver has answered 2xx, and the next is sent then. Until then it is sent again after a pause that doubles from
`first_pause_s` to `max_pause_s`, times a random factor of 0.5 to 1.5, or after what `Retry-After` says within that. One
that is older than `max_age_s` is given up, with a line in the log, so it holds up those behind it for no longer. 410
(Gone) ends it all. Redirects are not followed. After a job has ended, what is left is delivered under the same bounds.

| header | what |
|---|---|
| `Idempotency-Key` | `<job>-<sequence in the ledger>`: the same for every attempt, and for no other answer |
| `Penstock-Job` | the job |
| `traceparent` | W3C Trace Context: of the answer, or of this attempt within its trace |

Signed as `penstock.posting` says. A receiver keeps the keys it has seen.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from random import Random
from urllib.parse import urlsplit

import anyio
import httpx
import msgspec
import structlog

from engine.node.gate import Gate
from engine.run import conventions as names
from engine.run.registry import Registry
from engine.run.telemetry import Attributes, Span, Telemetry
from engine.spec.jobs import JobSpec
from engine.spec.webhook_url import check_webhook, public_webhook
from penstock.posting import Posting
from streams import subjects
from streams.errors import LinkError, PenstockError, Permanent, UserError
from streams.wire.ledger import Ledger
from streams.wire.link import Refused
from streams.wire.pull import STARTS_ELSEWHERE, Acks, Arrival, Pull
from streams.wire.retention import ANSWERS

log = structlog.get_logger(__name__)

INACTIVE_S = 3600.0  # beyond the age at which answers are given up, a consumer that nobody asks of is kept
HAND_BACK_S = 0.3
SAID_AFTER = 4  # attempts that fail: some seconds
FAILS = "its webhook does not take answers"


class Pace(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How patient we are with a receiver."""

    request_s: float = 15.0  # for one attempt, as a whole
    first_pause_s: float = 0.5
    max_pause_s: float = 60.0
    max_age_s: float = 24 * 3600.0  # of an answer; it is tried once at least
    ack_wait_s: float = 30.0  # silence after which another node goes on
    look_s: float = 5.0  # without an answer, how often it is asked whether the job has ended


class Webhooks:
    """Made for one node."""

    def __init__(
        self,
        ledger: Ledger,
        secret: str | None = None,
        pace: Pace | None = None,
        random: Random | None = None,
        traces: Telemetry | None = None,
        gate: Gate | None = None,
        registry: Registry | None = None,
    ) -> None:
        """Without a `secret`, $PENSTOCK_WEBHOOK_SECRET is it; without either, nothing is signed. With a `registry`, a
        job says of a receiver that it takes nothing."""
        self._ledger = ledger
        self._link = ledger.link
        self._acks = Acks(ledger)
        self._pace = pace or Pace()
        self._posting = Posting(self._pace.request_s, secret)
        self._random = random or Random()
        self._traces = traces
        self._gate = gate or Gate()
        self._registry = registry
        self._failing: set[str] = set()  # jobs whose receivers take nothing, as was said

    async def send(self, spec: JobSpec, is_over: Callable[[], Awaitable[bool]]) -> None:
        """Send a job's answers until all it will have are done with: `is_over` says that no more will come."""
        if not spec.webhook:
            return
        try:
            check_webhook(spec.webhook)
            proxy = self._gate.proxy if spec.confined or not self._gate.trusts_registry else None
        except UserError as error:
            log.error("no_webhook", job=spec.id, error=str(error))
            return
        pause_s = self._pace.first_pause_s
        while True:
            try:
                await self._send(spec, is_over, proxy)
                return
            except LinkError as error:
                log.warning("webhook_interrupted", job=spec.id, error=str(error), pause_s=pause_s)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._pace.max_pause_s)

    async def _send(self, spec: JobSpec, is_over: Callable[[], Awaitable[bool]], proxy: str | None) -> None:
        durable = f"webhook-{spec.id}"
        async with (
            self._answers(durable, subjects.answers(spec.id, spec.stream)) as pull,
            self._posting.client(proxy) as client,
        ):
            while (arrival := await self._next(pull, durable, is_over)) is not None:
                is_done = False
                try:
                    is_done = await self._deliver(client, spec, arrival)
                finally:
                    if not is_done:
                        with anyio.move_on_after(HAND_BACK_S, shield=True):
                            await self._acks.again(arrival, 0)
                if not is_done:
                    log.warning("webhook_gone", job=spec.id, to=public_webhook(spec.webhook))
                    break
        with suppress(Refused):  # it is gone already
            await self._link.api(f"CONSUMER.DELETE.{ANSWERS}.{durable}")

    # --- which answers -------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _answers(self, durable: str, subject: str) -> AsyncIterator[Pull]:
        """The answers that are not done with yet."""
        await self._begin(durable, subject)
        pull = Pull(self._link, ANSWERS, durable, [subject], self._pace.ack_wait_s)
        await pull.open()
        try:
            yield pull
        finally:
            with anyio.move_on_after(HAND_BACK_S, shield=True):
                await pull.close()

    async def _begin(self, durable: str, subject: str) -> None:
        """Make the consumer where it is missing. It is kept for longer than any answer is worth sending, so one that is
        made again has none to send that were sent before."""
        begins_s = time.time() - self._pace.max_age_s
        config = {
            "durable_name": durable,
            "filter_subjects": [subject],
            "deliver_policy": "by_start_time",
            "opt_start_time": datetime.fromtimestamp(begins_s, UTC).isoformat(),
            "ack_policy": "explicit",
            "ack_wait": int(self._pace.ack_wait_s * 1e9),
            "max_ack_pending": 1,  # in order, whoever sends
            "inactive_threshold": int((self._pace.max_age_s + INACTIVE_S) * 1e9),
        }
        with suppress(Refused):
            await self._link.api(f"CONSUMER.INFO.{ANSWERS}.{durable}")
            return
        try:
            request = {"stream_name": ANSWERS, "config": config}
            await self._link.api(f"CONSUMER.DURABLE.CREATE.{ANSWERS}.{durable}", request)
        except Refused as error:
            if error.code not in STARTS_ELSEWHERE:
                raise

    async def _next(self, pull: Pull, durable: str, is_over: Callable[[], Awaitable[bool]]) -> Arrival | None:
        """The next answer; None where none will come."""
        while True:
            with anyio.move_on_after(self._pace.look_s):
                (arrival,) = await pull.take(1)
                return arrival
            if await is_over():
                info = await self._link.api(f"CONSUMER.INFO.{ANSWERS}.{durable}")
                if not info["num_pending"] and not info["num_ack_pending"]:
                    return None

    # --- one answer ----------------------------------------------------------------------------------------------

    async def _deliver(self, client: httpx.AsyncClient, spec: JobSpec, arrival: Arrival) -> bool:
        """Send one answer until it is done with; False where nobody wants any more."""
        try:
            body = await self._ledger.whole(arrival.data, arrival.headers)
        except Permanent as error:
            await self._give_up(spec, arrival, 0, str(error))
            return True
        pause_s, num_attempts = self._pace.first_pause_s, 0
        while True:
            await self._acks.progress(arrival)
            num_attempts += 1
            span = self._span(spec, arrival, num_attempts)
            headers = {"Idempotency-Key": f"{spec.id}-{arrival.seq}", "Penstock-Job": spec.id}
            if span.traceparent:
                headers["traceparent"] = span.traceparent
            status, asked_s, reason = await self._posting.post(client, spec.webhook, body, headers)
            failed = "" if 200 <= status < 400 else reason
            span.end(None, {names.STATUS: status} if status else {names.ERROR: reason}, error=failed)
            if 200 <= status < 300:
                await self._acks.done(arrival)
                await self._say_taken(spec)
                return True
            if status == HTTPStatus.GONE:
                return False
            wanted_s = max(pause_s * self._random.uniform(0.5, 1.5), min(asked_s, self._pace.max_pause_s))
            age_s = (time.time_ns() - arrival.stored_ns) / 1e9
            if age_s + wanted_s > self._pace.max_age_s:
                await self._give_up(spec, arrival, num_attempts, reason)
                return True
            log.info("webhook_refused", job=spec.id, answer=arrival.seq, reason=reason, pause_s=round(wanted_s, 3))
            if num_attempts == SAID_AFTER:
                await self._say_failing(spec, reason)
            await self._pause(arrival, wanted_s)
            pause_s = min(2 * pause_s, self._pace.max_pause_s)

    async def _say_failing(self, spec: JobSpec, reason: str) -> None:
        if spec.id not in self._failing:
            self._failing.add(spec.id)
            log.warning("webhook_fails", job=spec.id, to=public_webhook(spec.webhook), reason=reason)
            await self._note(spec, f"{FAILS} ({reason})")

    async def _say_taken(self, spec: JobSpec) -> None:
        if spec.id in self._failing:
            self._failing.discard(spec.id)
            log.warning("webhook_taken_again", job=spec.id, to=public_webhook(spec.webhook))
            await self._note(spec, "")

    async def _note(self, spec: JobSpec, detail: str) -> None:
        """Have the job say so, unless it has something else to say."""

        def noted(job: JobSpec) -> JobSpec:
            is_ours = not job.detail or job.detail.startswith(FAILS)
            return msgspec.structs.replace(job, detail=detail) if is_ours else job

        if self._registry is not None:
            with suppress(PenstockError):  # the log has it
                await self._registry.change_job(spec.id, noted)

    async def _give_up(self, spec: JobSpec, arrival: Arrival, num_attempts: int, reason: str) -> None:
        to = public_webhook(spec.webhook)
        log.warning("webhook_gave_up", job=spec.id, answer=arrival.seq, to=to, reason=reason, num_attempts=num_attempts)
        await self._acks.done(arrival)

    async def _pause(self, arrival: Arrival, pause_s: float) -> None:
        """Wait, and show that the answer is still being sent."""
        while pause_s > 0:
            step_s = min(pause_s, self._pace.ack_wait_s / 3)
            await anyio.sleep(step_s)
            await self._acks.progress(arrival)
            pause_s -= step_s

    def _span(self, spec: JobSpec, arrival: Arrival, num_attempts: int) -> Span:
        """Of one attempt, in the trace of the answer."""
        if self._traces is None or not self._traces.enabled:
            return Span(arrival.traceparent)
        told: Attributes = {
            names.METHOD: "POST",
            names.URL: public_webhook(spec.webhook),
            names.SERVER: urlsplit(spec.webhook).hostname or "",
            names.JOB: spec.id,
            names.RESENT: num_attempts - 1,
        }
        return self._traces.span(names.request("POST"), arrival.traceparent, kind="client", attributes=told)
