"""Where the server is that runs for a store on this machine, as commands and clients find it."""

from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from streams.errors import LinkError
from streams.wire.server import is_kept, running_server

LISTENS_S = 2.0
RESTART_S = 20.0  # for which a server that is started again is waited for


async def server_of(store: Path) -> str:
    """The server that runs for a store; one that is being started again, as behind a full disk, is waited for. Raises
    LinkError where none does."""
    url, until_s = None, anyio.current_time() + RESTART_S
    while anyio.current_time() < until_s:
        url = await anyio.to_thread.run_sync(running_server, store)
        if url is not None and await _listens(url):
            return url
        if not await anyio.to_thread.run_sync(is_kept, store):
            break
        await anyio.sleep(0.2)
    if url is None:
        raise LinkError(f"no Penstock runs here ({store}): start `penstock serve`, or give --nats URL")
    return url


async def _listens(url: str) -> bool:
    """Whether a server takes connections there: one that has just ended is still written down."""
    parts = urlsplit(url)
    try:
        with anyio.fail_after(LISTENS_S):
            await (await anyio.connect_tcp(parts.hostname or "127.0.0.1", parts.port or 4222)).aclose()
    except (OSError, TimeoutError, ValueError):
        return False
    return True
