"""A link for commands that read what is stored, whether or not nodes run."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from penstock.places import NATS_URL
from streams.errors import UserError

if TYPE_CHECKING:
    from streams.wire.link import Link


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `linked` goes by."""
    parser.add_argument("--nats", metavar="URL", help="the NATS server (default: $PENSTOCK_NATS, or the store's own)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where the embedded server keeps its data")


@asynccontextmanager
async def linked(url: str | None, store: Path, name: str, *, is_new: bool = False) -> AsyncIterator[Link]:
    """The server asked for, else the one that runs for the store, else the store's own, started for this. Raises
    UserError where there is no store, unless a new one is wanted."""
    from streams.wire.link import connect
    from streams.wire.server import embedded

    place = url or os.environ.get(NATS_URL)
    if place:
        async with connect(place, name=name) as link:
            yield link
        return
    if not is_new and not await anyio.to_thread.run_sync(os.path.isdir, store):
        raise UserError(f"{store}: there is no store: give --store DIR of a run, or --nats URL")
    async with embedded(store) as own, connect(own, name=name) as link:
        yield link
