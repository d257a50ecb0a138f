"""How a service that runs does, for `penstock doctor`: its store and its disk, its keeper, whether NATS stores, the
cluster, clocks, sources, and what can be reached from elsewhere. Each finding says what to do."""

import ipaddress
import os
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec

from engine.decide.responsible import unlike_signers
from engine.run.registry import NodeStatus, Registry, open_registry
from engine.spec.webhook_url import SECRET
from penstock.tokens import known_token
from streams.errors import PenstockError, UserError
from streams.wire import identity
from streams.wire import store as stores
from streams.wire.ledger import Ledger, open_ledger
from streams.wire.link import Link, connect, servers_of, without_credentials
from streams.wire.room import mebibytes
from streams.wire.server import running_server

PATIENCE_S = 3.0
PROOF_S = 2.0
MAX_OFFSET_S = 1.0  # between this machine's clock and the server's
SECRETS = ("identity.json", "server.json", "nats-server.conf", "http.token")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `optional`: Penstock works without it."""

    what: str
    ok: bool
    found: str
    advice: str = ""
    optional: bool = False


async def of_store(url: str | None, store: Path) -> list[Finding]:
    """Its disk, who may read it, and whether its server is kept."""
    if url is not None or not await anyio.to_thread.run_sync(os.path.isdir, store):
        return []
    return [await anyio.to_thread.run_sync(look, store) for look in (_disk, _permissions, _keeper)]


def _disk(store: Path) -> Finding:
    if full := stores.full_disk(store):
        return Finding(what="disk", ok=False, found=full, advice="all goes on by itself when there is room")
    free = stores.free_bytes(store)
    return Finding(what="disk", ok=True, found=f"{mebibytes(free)} are free where {store} is")


def _permissions(store: Path) -> Finding:
    """Secrets are their owner's alone."""
    open_ = [
        str(path)
        for path in (store, *(store / name for name in SECRETS))
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    if open_:
        advice = f"chmod go= {' '.join(open_)}"
        return Finding(what="permissions", ok=False, found=f"others may read {', '.join(open_)}", advice=advice)
    return Finding(what="permissions", ok=True, found=f"{store} and its secrets are its owner's alone")


def _keeper(store: Path) -> Finding:
    said = stores.status(store)
    if running_server(store) is not None:
        pids = f"nats-server {said.get('pid')}, kept by {said.get('keeper_pid')}"
        is_kept = _lives(said.get("keeper_pid"))
        advice = (
            "" if is_kept else "the next node to see it starts another keeper; if none does, start `penstock serve`"
        )
        return Finding(what="keeper", ok=is_kept, found=pids if is_kept else f"{pids}, which has gone", advice=advice)
    if "failed" in said:
        return Finding(what="keeper", ok=False, found=str(said["failed"]), advice=f"see {store / stores.LOG}")
    return Finding(what="keeper", ok=True, found=f"no server runs for {store}", optional=True)


def _lives(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


async def of_what_runs(url: str | None, store: Path) -> list[Finding]:
    """What a server that runs, and the nodes on it, say of themselves; nothing where none runs."""
    place = url or await anyio.to_thread.run_sync(running_server, store)
    if place is None:
        return []
    try:
        async with connect(place, name="penstock-doctor", patience_s=PATIENCE_S) as link:
            ledger, registry = await open_ledger(link), await open_registry(link)
            nodes = await registry.nodes()
            return [
                await _storing(ledger),
                *await _cluster(link, ledger, registry),
                await _clock(ledger),
                _nodes(nodes),
                *_signers(nodes),
                *await _sources(registry),
                *await anyio.to_thread.run_sync(_exposed, place, nodes, store),
            ]
    except PenstockError as error:
        return [Finding(what="service", ok=False, found=str(error), advice="see what NATS and the nodes log")]


async def _storing(ledger: Ledger) -> Finding:
    try:
        await ledger.prove(PROOF_S)
    except PenstockError as error:
        advice = "free some of its disk; an own nats-server has to be restarted after that"
        return Finding(what="storing", ok=False, found=str(error), advice=advice)
    return Finding(what="storing", ok=True, found="NATS stores media, results and answers")


async def _cluster(link: Link, ledger: Ledger, registry: Registry) -> list[Finding]:
    """Whether all that is kept is on several servers, and those are there."""
    if not link.is_clustered:
        return []
    few, behind, servers = list[str](), set[str](), set[str]()
    names = (*ledger.streams, *(bucket.stream for bucket in registry.buckets))
    for name in names:
        said = await link.api(f"STREAM.INFO.{name}")
        cluster = said.get("cluster") or {}
        servers.add(str(cluster.get("leader")))
        for replica in cluster.get("replicas") or ():
            servers.add(str(replica.get("name")))
            if replica.get("offline") or not replica.get("current"):
                behind.add(str(replica.get("name")))
        if said.get("config", {}).get("num_replicas", 1) < 2:
            few.append(name)
    if behind:
        found = f"{', '.join(sorted(behind))} of {len(servers)} servers is gone or behind"
        return [Finding(what="cluster", ok=False, found=found, advice="start it; it catches up by itself")]
    if few:
        advice = "a running node makes more replicas; three servers are needed"
        return [Finding(what="cluster", ok=False, found=f"on one server only: {', '.join(few)}", advice=advice)]
    return [Finding(what="cluster", ok=True, found=f"all is on {len(servers)} servers, which are there")]


async def _clock(ledger: Ledger) -> Finding:
    """Due times go by the server's clock; times of day, and lags of live streams, are compared with it."""
    if not await ledger.clock.estimate():
        return Finding(what="clock", ok=False, found="the server does not say what time it is", advice="try again")
    offset_s = ledger.clock.offset_ns / 1e9
    found = f"{abs(offset_s):.3f} s {'behind' if offset_s > 0 else 'ahead of'} the server's"
    is_right = abs(offset_s) < MAX_OFFSET_S
    return Finding(
        what="clock", ok=is_right, found=found, advice="" if is_right else "keep both clocks by NTP (chrony)"
    )


def _nodes(nodes: list[NodeStatus]) -> Finding:
    if not nodes:
        return Finding(what="nodes", ok=False, found="none is up", advice="start `penstock serve`")
    workers = sum(node.num_workers for node in nodes)
    return Finding(what="nodes", ok=True, found=f"{len(nodes)} up, with {workers} workers")


def _signers(nodes: list[NodeStatus]) -> list[Finding]:
    if not (said := unlike_signers({node.id: node.signs for node in nodes})):
        return []
    return [Finding(what="webhooks", ok=False, found=said, advice=f"start all nodes with the same ${SECRET}")]


async def _sources(registry: Registry) -> list[Finding]:
    """Those that give nothing."""
    declared = await registry.streams()
    bad = [state for name, state in (await registry.source_states()).items() if name in declared]
    bad = [state for state in bad if state.state in ("silent", "gone") or (state.state == "connecting" and state.error)]
    return [
        Finding(
            what=f"stream {state.stream}",
            ok=False,
            found=f"{state.state}: {state.error or 'nothing comes'}",
            advice="see that it is up and can be reached from the node that reads it",
        )
        for state in bad
    ]


def _exposed(place: str, nodes: list[NodeStatus], store: Path) -> list[Finding]:
    """What can be reached from other machines, and what it asks for."""
    found = []
    tells = [each for each in servers_of(place) if not _is_here(urlsplit(each).hostname or "")]
    if tells:
        is_encrypted = identity.identity().tls is not None or all(each.startswith("tls:") for each in tells)
        line = f"{without_credentials(place)} is on the network, {'with' if is_encrypted else 'without'} TLS"
        advice = "" if is_encrypted else "`penstock keys` makes certificates and keys for it"
        found.append(Finding(what="NATS is reached", ok=is_encrypted, found=line, advice=advice, optional=True))
    open_ = sorted({node.http for node in nodes if node.http and not _is_here(urlsplit(node.http).hostname or "")})
    if open_:
        try:
            has_token = known_token(store) is not None
        except UserError:
            has_token = False
        line = f"{', '.join(open_)} can be reached from other machines, unencrypted"
        asks = "" if has_token else "; no token is known here"
        found.append(
            Finding(what="HTTP is reached", ok=has_token, found=line + asks, advice="put TLS before it", optional=True)
        )
    return found or [Finding(what="reached", ok=True, found="nothing is reached from other machines")]


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        return all(ipaddress.ip_address(at[4][0]).is_loopback for at in socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False
