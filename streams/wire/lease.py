"""Leases: who may do what only one may do at a time, by a key in a bucket that forgets.

Delivery guarantee: at most one holder does the work, as long as the holder's monotonic clock and the server's clock run
at the same rate within MARGIN_SHARE of the lease, and the holder stops within that share once it is canceled. The
server forgets a value `max_age_s` after it was stored; the holder counts from before it asked for that, and stops a
margin earlier. So work that does not yield to cancellation, a process or a machine that is suspended and a server's
clock that jumps ahead can each let two work at once for a while. What must not happen twice even then needs a fence of
its own: Penstock's results are write-once records, and of two that are written the second is refused.

A lease that is not given back, because its holder was killed, is free once the server has forgotten it.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
import structlog

from streams.errors import LinkError, UserError
from streams.wire.kv import Bucket
from streams.wire.link import Refused

log = structlog.get_logger(__name__)

MARGIN_SHARE = 0.1  # of `max_age_s`: for clocks that differ, and to stop the work
GIVE_BACK_S = 2.0  # at most, at the end
LOOK_AGAIN_S = 0.1  # after a hint, which may come before what it hints at can be read


class _Lease(NamedTuple):
    """The right to do the work until `ends_s` of the event loop's clock, which is monotonic."""

    revision: int
    ends_s: float


async def while_held(
    bucket: Bucket, name: str, holder: str, body: Callable[[], Awaitable[None]], *, renew_s: float, retry_s: float
) -> None:
    """Wait until the lease `name` is ours, then run `body` as long as it stays ours; return when `body` has.

    The lease is renewed every `renew_s`. If it cannot be, `body` is canceled at once and all begins anew: it is waited
    for the lease, and `body` is run again. While another holds it, it is looked at every `retry_s`, and as soon as a
    hint says that it changed. The lease is given back however this ends; only a cancellation in the very moment of
    taking it may leave it to be forgotten by the server. Raises what `body` raises, and Refused where the server does
    not allow it; while the server is away it waits.
    """
    lasts_s = _checked(bucket, name, renew_s, retry_s)
    ours = _Contender(bucket, name, holder, lasts_s, retry_s)
    end_watch = await bucket.watch(ours.note_change)
    try:
        while True:
            lease = await ours.acquired()
            if await ours.work(lease, body, renew_s):
                return
    finally:
        with anyio.move_on_after(GIVE_BACK_S, shield=True):
            await end_watch()


async def holder_of(bucket: Bucket, name: str) -> str | None:
    """Who holds a lease, None where nobody does."""
    held = await bucket.get(name)
    return None if held is None else held.value.decode(errors="replace")


class _Contender:
    """One who wants the lease."""

    def __init__(self, bucket: Bucket, name: str, holder: str, lasts_s: float, retry_s: float) -> None:
        self._bucket = bucket
        self._name = name
        self._holder = holder
        self._lasts_s = lasts_s
        self._retry_s = retry_s
        self._changed = anyio.Event()

    def note_change(self, key: str) -> None:
        if key in ("", self._name):
            self._changed.set()

    async def acquired(self) -> _Lease:
        """Returns once the lease is ours."""
        while True:
            hinted = self._changed.is_set()
            self._changed = anyio.Event()
            try:
                if await self._bucket.get(self._name) is None:
                    asked_s = anyio.current_time()
                    revision = await self._bucket.create(self._name, self._holder.encode())
                    if revision is not None:
                        log.info("lease_acquired", lease=self._name, holder=self._holder)
                        return _Lease(revision, asked_s + self._lasts_s)
            except LinkError as error:
                self._pass_over(error)
            with anyio.move_on_after(min(LOOK_AGAIN_S, self._retry_s) if hinted else self._retry_s):
                await self._changed.wait()

    async def work(self, lease: _Lease, body: Callable[[], Awaitable[None]], renew_s: float) -> bool:
        """Run `body` while the lease lasts; whether it ended of itself."""
        is_over = is_lost = False
        failure: Exception | None = None  # raised below, where no task group wraps it

        async def run() -> None:
            nonlocal is_over, failure
            try:
                await body()
            except Exception as error:
                if is_lost:
                    log.warning("lease_lost_badly", lease=self._name, holder=self._holder, exc_info=error)
                else:
                    failure = error
            is_over = not is_lost
            tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                try:
                    while (renewed := await self._renewed(lease, renew_s)) is not None:
                        lease = renewed
                except LinkError as error:
                    failure = error
                is_lost = True
                tasks.cancel_scope.cancel()
        finally:
            if not is_lost:
                with anyio.move_on_after(GIVE_BACK_S, shield=True):
                    await self._give_back(lease)
        if failure is not None:
            raise failure
        return is_over

    async def _renewed(self, lease: _Lease, renew_s: float) -> _Lease | None:
        """The lease as it is `renew_s` later; None where it is lost."""
        pause_s = renew_s
        with anyio.CancelScope(deadline=lease.ends_s):
            while True:
                await anyio.sleep(pause_s)
                asked_s = anyio.current_time()
                try:
                    revision = await self._bucket.update(self._name, self._holder.encode(), lease.revision)
                except LinkError as error:
                    self._pass_over(error)
                    pause_s = min(renew_s, self._retry_s)
                    continue
                if revision is None:
                    log.warning("lease_lost", lease=self._name, holder=self._holder, why="it was taken or deleted")
                    return None
                return _Lease(revision, asked_s + self._lasts_s)
        log.warning("lease_lost", lease=self._name, holder=self._holder, why="it could not be renewed in time")
        return None

    async def _give_back(self, lease: _Lease) -> None:
        try:
            if await self._bucket.delete(self._name, lease.revision):
                return
            # A renewal may have been stored whose answer we did not wait for: nobody else can have been let in yet.
            held = await self._bucket.get(self._name)
            if held is not None and held.value == self._holder.encode() and anyio.current_time() < lease.ends_s:
                await self._bucket.delete(self._name, held.revision)
        except LinkError as error:
            log.warning("lease_not_given_back", lease=self._name, holder=self._holder, error=str(error))

    def _pass_over(self, error: LinkError) -> None:
        """What passes: the server is away. Raises what does not."""
        if isinstance(error, Refused) or self._bucket.link.client.is_closed:
            raise error
        log.warning("lease_unknown", lease=self._name, holder=self._holder, error=str(error))


def _checked(bucket: Bucket, name: str, renew_s: float, retry_s: float) -> float:
    """How long the lease lasts for its holder after it asked for it."""
    if bucket.max_age_s is None:
        raise UserError(f"lease {name}: bucket {bucket.name} keeps its values: open one with max_age_s")
    lasts_s = bucket.max_age_s * (1 - MARGIN_SHARE)
    if not 0 < renew_s < lasts_s or retry_s <= 0:
        raise UserError(
            f"lease {name}: renew_s {renew_s:g}, retry_s {retry_s:g}: give above 0, and renew_s below {lasts_s:g}"
        )
    return lasts_s
