"""Retention: which JetStream streams hold the ledger, how long and how much each keeps, and on how many servers."""

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import structlog

from streams.subjects import PREFIX
from streams.wire import jetstream
from streams.wire.link import Link, Refused
from streams.wire.room import fitted

log = structlog.get_logger(__name__)

MEDIA, RESULTS, ANSWERS = (f"{PREFIX.upper()}_{kind}" for kind in ("MEDIA", "RESULTS", "ANSWERS"))


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the ledger keeps what it holds; the oldest goes first."""

    max_age_s: Annotated[float, msgspec.Meta(ge=1.0, le=1e9)] = 7 * 24 * 3600.0
    max_media_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 60)] = 16 * 1024**3
    max_results_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 60)] = 4 * 1024**3
    num_replicas: Annotated[int, msgspec.Meta(ge=1, le=5)] | None = (
        None  # None: three where the servers are a cluster, else one
    )


async def retain(link: Link, retention: Retention) -> None:
    """Have the streams that are there keep what they hold for as long as this says, from now on, as far as there is
    room."""
    standing: dict[str, dict[str, Any]] = {}
    wanted: list[dict[str, Any]] = []
    for kind, max_bytes in _limits(retention).items():
        name = f"{PREFIX.upper()}_{kind.upper()}"
        config = standing[name] = await jetstream.config_of(link, name)
        max_age_ns = int(retention.max_age_s * 1e9)
        window = min(config.get("duplicate_window", 0), max_age_ns)
        wanted.append({**config, "max_age": max_age_ns, "max_bytes": max_bytes, "duplicate_window": window})
    await fitted(link, wanted, standing)


async def replicas_of(link: Link) -> int:
    """How many servers hold each record of the ledger, or will."""
    try:
        found = (await jetstream.config_of(link, MEDIA)).get("num_replicas", 1)
    except Refused:  # there is none yet
        return link.num_replicas
    return found if isinstance(found, int) else 1


async def keep_replicas(link: Link, names: Iterable[str]) -> None:
    """Have each of these JetStream streams held by as many servers as the ledger is, at least: a server that goes takes
    with it what it alone holds."""
    wanted = await replicas_of(link)
    for name in names:
        config = await jetstream.config_of(link, name)
        if config.get("num_replicas", 1) < wanted:
            await link.api(f"STREAM.UPDATE.{name}", {**config, "num_replicas": wanted})
            log.warning("replicated", stream=name, num_replicas=wanted)


def names() -> list[str]:
    """Of the JetStream streams that hold the ledger."""
    return [f"{PREFIX.upper()}_{kind.upper()}" for kind in _limits(Retention())]


def wanted_bytes(retention: Retention) -> int:
    """What all streams together may take where there is room for it."""
    return sum(_limits(retention).values())


def configurations(link: Link, retention: Retention) -> list[dict[str, Any]]:
    """Of the JetStream streams that hold the ledger, as they are wanted."""
    if retention.num_replicas is None:
        retention = msgspec.structs.replace(retention, num_replicas=link.num_replicas)
    return [_config(kind, most, retention) for kind, most in _limits(retention).items()]


def _limits(retention: Retention) -> dict[str, int]:
    """The most bytes that each kind of record may take."""
    return {
        "media": retention.max_media_bytes,
        "bulk": retention.max_media_bytes,
        "results": retention.max_results_bytes,
        "answers": retention.max_results_bytes,
        "dead": retention.max_results_bytes,
        "gaps": retention.max_results_bytes // 16,
    }


def _config(kind: str, max_bytes: int, retention: Retention) -> dict[str, Any]:
    max_age_ns = int(retention.max_age_s * 1e9)
    return {
        "name": f"{PREFIX.upper()}_{kind.upper()}",
        "subjects": [f"{PREFIX}.{kind}.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_age": max_age_ns,
        "max_bytes": max_bytes,
        "num_replicas": retention.num_replicas,
        "allow_direct": True,
        "duplicate_window": min(max_age_ns, 120_000_000_000),
    }
