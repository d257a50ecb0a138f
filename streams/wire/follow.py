"""Following a subject: every record that matches, in the order of storing, those to come included.

Delivery guarantee: each record once to each follower, none left out but what falls out of retention before it is read.
There is no state on the server: a follower knows the sequence it has seen last and goes on behind it, after a
reconnection or in another process; in a stream that was deleted and made anew, with what comes there. Core NATS tells
that there may be more; what it does not tell is found by looking every LOOK_S.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio

from streams.wire.ledger import Ledger, Stored, stream_of

LOOK_S = 2.0
RECOUNT = 5  # looks in vain after which it is asked whether the stream was made anew
STORING_S = (0.001, 0.004, 0.02, 0.1)  # what core NATS tells of is stored a moment later


async def follow(
    ledger: Ledger,
    filter_subject: str,
    after: int = 0,
    is_over: Callable[[], Awaitable[bool]] | None = None,
    hint: str = "",
) -> AsyncGenerator[Stored, None]:
    """The records stored behind sequence `after` (0: from the first that is kept; -1: only those stored from now on).
    Ends where nothing is left and `is_over` says that nothing more will come, which it is asked after silence and after
    each message on `hint`."""
    news = anyio.Event()

    async def on_message(message: Any) -> None:
        news.set()

    forget = ledger.link.on_reconnect(lambda: news.set())
    watches = [await ledger.link.subscribe(subject, on_message) for subject in (filter_subject, hint) if subject]
    try:
        seq = await ledger.last_seq(filter_subject) if after < 0 else after
        num_looks = len(STORING_S)
        while True:
            news = anyio.Event()
            over = is_over is not None and num_looks > 0 and await is_over()  # asked before it is looked
            noted = await ledger.next(filter_subject, seq + 1)
            if noted is not None:
                seq = noted.record.seq
                yield noted.record
                continue
            if over:
                return
            with anyio.move_on_after(STORING_S[num_looks] if num_looks < len(STORING_S) else LOOK_S):
                await news.wait()
            num_looks = 0 if news.is_set() else num_looks + 1
            if num_looks > len(STORING_S) and num_looks % RECOUNT == 0:
                seq = min(seq, await ledger.last_stored(stream_of(filter_subject)))
    finally:
        forget()
        await ledger.link.unsubscribe(*watches)
