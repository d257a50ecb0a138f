"""Room: how much of a disk each of the ledger's JetStream streams may take, where there is less than was wanted.

A stream's `max_bytes` is *reserved*: the server makes no stream whose limit does not fit into what the account and the
server have left, however empty the disk is. What an account has left it says; what a server has left it does not, only
that it is too little (err 10047). So the limits are tried as they are wanted, and where they do not fit, all of them at
three quarters of that, and so on: in fixed proportions, never above what was wanted. A sixteenth of what fits is left
for the buckets, whose size nobody reserves.
"""

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import msgspec
import structlog

from streams.decoding import converted
from streams.errors import LinkError, Malformed, UserError
from streams.wire.jetstream import NAME_IN_USE, NO_STREAM, config_of
from streams.wire.link import NO_ROOM, Link, Refused, without_credentials

log = structlog.get_logger(__name__)

MIN_ROOM_BYTES = 256 * 1024**2  # less holds some seconds of video only
MAKING, MAKING_S = "PENSTOCK_MAKING", 10.0
STEP = (3, 4)
TOLD_S = 0.5  # in a cluster: until whoever places streams has heard what was given back
FOR_LIMITS = (15, 16)  # of what fits; the rest is for the buckets


class _Limits(msgspec.Struct):
    max_storage: int = -1
    storage_max_stream_bytes: int = -1


class _Account(msgspec.Struct):
    """What JetStream says of an account, as far as it matters here."""

    limits: _Limits = msgspec.field(default_factory=_Limits)
    reserved_storage: int = 0


def shared_out(wanted: Mapping[str, int], available_bytes: int) -> dict[str, int]:
    """What each may take: what it wants where that fits, else its share of what is available, in the proportions of
    what is wanted. Pure. Raises UserError where that is less than MIN_ROOM_BYTES together."""
    total = sum(wanted.values())
    if total <= available_bytes:
        return dict(wanted)
    if available_bytes < MIN_ROOM_BYTES:
        raise UserError(
            f"{mebibytes(available_bytes)} is too little: Penstock keeps media and results in at least "
            f"{mebibytes(MIN_ROOM_BYTES)}"
        )
    return {name: max(1, bytes_ * available_bytes // total) if bytes_ else 0 for name, bytes_ in wanted.items()}


def attempts(total_bytes: int, left_bytes: int | None) -> Iterator[int]:
    """How much to try to reserve, all that is wanted first; `left_bytes` is what is known to be left. Pure."""
    bytes_ = total_bytes
    if left_bytes is not None:
        bytes_ = min(total_bytes, max(0, left_bytes) * FOR_LIMITS[0] // FOR_LIMITS[1])
    while bytes_ >= MIN_ROOM_BYTES or bytes_ == total_bytes:
        yield bytes_
        if bytes_ <= MIN_ROOM_BYTES:
            return
        bytes_ = max(bytes_ * STEP[0] // STEP[1], MIN_ROOM_BYTES)


def mebibytes(bytes_: int) -> str:
    """As a person reads it: 300 MiB, 1.5 GiB."""
    return f"{bytes_ / 1024**2:.0f} MiB" if bytes_ < 1024**3 else f"{bytes_ / 1024**3:.1f} GiB"


async def room_left(link: Link) -> int | None:
    """What the account may still reserve, None where it has no limit of its own."""
    account = await _account(link)
    most = account.limits.max_storage
    return None if most < 0 else max(0, most - account.reserved_storage)


async def made_to_fit(link: Link, configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The configurations of these streams, those that are missing made as far as there is room, where there is less
    than they want; an existing one keeps its own. Raises UserError where even MIN_ROOM_BYTES is not there."""
    found = await _found(link, configs)
    if len(found) < len(configs):
        async with _alone(link):
            found = await _found(link, configs)
            found |= await fitted(link, [config for config in configs if config["name"] not in found], {})
    return [found[config["name"]] for config in configs]


async def _found(link: Link, configs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those that are there."""
    found: dict[str, dict[str, Any]] = {}
    for config in configs:
        try:
            found[config["name"]] = await config_of(link, config["name"])
        except Refused as error:
            if error.code != NO_STREAM:
                raise
    return found


@asynccontextmanager
async def _alone(link: Link) -> AsyncIterator[None]:
    """While this lasts nobody else makes streams, or they would take from each other what they measure. Who made the
    stream MAKING has the right to; one whose maker died is taken away after a while."""
    mine = secrets.token_hex(8)
    config = {"name": MAKING, "subjects": [MAKING.lower()], "max_bytes": 1024, "description": mine}
    give_up_s = anyio.current_time() + MAKING_S
    while True:
        try:
            await link.api(f"STREAM.CREATE.{MAKING}", config, final=NO_ROOM)
            break
        except Refused as error:
            if error.code in NO_ROOM:
                raise UserError(too_little(link, MIN_ROOM_BYTES)) from error
            if error.code != NAME_IN_USE:
                raise
        if anyio.current_time() > give_up_s:
            log.warning("left_by_a_dead_maker", stream=MAKING)
            with suppress(Refused):
                await link.api(f"STREAM.DELETE.{MAKING}")
            give_up_s = anyio.current_time() + MAKING_S
        await anyio.sleep(0.05)
    try:
        yield
    finally:
        with anyio.move_on_after(2, shield=True), suppress(LinkError):
            await link.api(f"STREAM.DELETE.{MAKING}")


async def fitted(
    link: Link, wanted: Sequence[Mapping[str, Any]], standing: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Make streams or, where they are `standing`, change them, with all of `max_bytes` that there is room for. What
    they are then. Raises UserError where that is less than MIN_ROOM_BYTES."""
    if not wanted:
        return {}
    account = await _account(link)
    most = account.limits.storage_max_stream_bytes
    sizes = {each["name"]: min(each["max_bytes"], most) if most > 0 else each["max_bytes"] for each in wanted}
    copies = max(each.get("num_replicas", 1) for each in wanted)
    left = None
    if account.limits.max_storage >= 0:
        ours = sum(config.get("max_bytes", 0) for config in standing.values())
        left = (account.limits.max_storage - account.reserved_storage) // copies + ours
    fit = _Fit(link, wanted, standing)
    total = sum(sizes.values())
    for bytes_ in attempts(total, left):
        if not await fit.reach(shared_out(sizes, bytes_)):
            if link.is_clustered:
                await anyio.sleep(TOLD_S)
            continue
        if bytes_ < total:
            spared = max(MIN_ROOM_BYTES, bytes_ * FOR_LIMITS[0] // FOR_LIMITS[1]) if left is None else bytes_
            await fit.reach(shared_out(sizes, spared))
            log.warning("less_room_than_wanted", wanted=mebibytes(total), shared_out=mebibytes(spared))
        return fit.now
    await fit.undo()
    raise UserError(too_little(link, min(total, MIN_ROOM_BYTES)))


def too_little(link: Link, least_bytes: int) -> str:
    return (
        f"{without_credentials(link.url)} has too little room for what Penstock keeps, at least "
        f"{mebibytes(least_bytes)}: free some of its disk, or raise its max_file_store or the account's max_storage"
    )


class _Fit:
    """Streams on their way to limits that fit."""

    def __init__(
        self, link: Link, wanted: Sequence[Mapping[str, Any]], standing: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._link = link
        self._wanted = {config["name"]: config for config in wanted}
        self._is_new = {name for name in self._wanted if name not in standing}
        self._is_others = set[str]()
        self.now = {name: dict(config) for name, config in standing.items()}

    async def reach(self, limits: Mapping[str, int]) -> bool:
        """Give each stream its limit, those that shrink first; False where one does not fit."""
        for name in sorted(limits, key=lambda name: name not in self.now):
            config = {**self._wanted[name], "max_bytes": limits[name]}
            if name in self._is_others or self.now.get(name) == config:
                continue
            verb = "UPDATE" if name in self.now else "CREATE"
            try:
                await self._link.api(f"STREAM.{verb}.{name}", config, final=NO_ROOM)
            except Refused as error:
                if error.code in NO_ROOM:
                    return False
                if verb != "CREATE" or error.code != NAME_IN_USE:
                    raise
                config = await config_of(self._link, name)  # made by someone else in the meantime: it stays so
                self._is_new.discard(name)
                self._is_others.add(name)
            self.now[name] = config
        return True

    async def undo(self) -> None:
        """Away with what was made in vain, if nothing is stored there: it would stay small for ever."""
        for name in self._is_new & set(self.now):
            try:
                state = (await self._link.api(f"STREAM.INFO.{name}")).get("state")
                if isinstance(state, dict) and state.get("messages") == 0:
                    await self._link.api(f"STREAM.DELETE.{name}")
            except LinkError as error:
                log.warning("cannot_undo", stream=name, error=str(error))


async def _account(link: Link) -> _Account:
    try:
        account: _Account = converted(await link.api("INFO"), _Account)
    except Malformed as error:
        raise LinkError(f"INFO: the server's answer cannot be read: {error}") from error
    return account
