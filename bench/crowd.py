"""What a node does when many come at once: connections, readers that do not read, a receiver of webhooks that is down,
jobs and questions by the thousand.

One node as it is installed (`penstock serve`, one worker, its embedded nats-server, all defaults) on one machine with
those who come; for each part it is begun anew, so that what one part leaves behind is not another's. Each is measured
against the same node when it is quiet. What its owner does meanwhile is probed: `/readyz` five times a second, and
twice a second a question of his own, from the submit to the answer. Memory is what is resident and of no file; what a
part has used up has to come back, SETTLE_S later: within MARGIN_FDS descriptors, and MARGIN_BYTES of memory (of the
server MARGIN_SERVER_BYTES).

The parts, and what is set as their limits:

connections
    500 HTTP connections (event streams that are read, ones kept alive that ask nothing, requests in a loop), then 500
    NATS connections that subscribe to answers. Probes within 1 s (p99), no answer missed, all comes back.
deaf
    20 event-stream readers and 20 NATS subscribers that never read, while a standing job says 64 kB ten times a second.
    Probes and a good reader within 1 s (p99). Those who never read are let go: over HTTP within the 60 s that TCP may
    stall, over NATS within 10 s, and 20 s each for buffers to fill. The node grows by no more than MARGIN_BYTES, the
    server by no more than twice what is said to 20 subscribers in 15 s (twice: Go's collector lets a heap double).
webhooks
    5 jobs to a receiver that refuses, then accepts and says nothing, then is back, beside 5 jobs to receivers that are
    well. These get their answers within 1 s (p99); nothing is lost, and all is in order; the first comes within 105 s
    of being back (a pause of 60 s times 1.5, and an attempt of 15 s); the job and the log say that it is down.
jobs_over_nats, jobs_over_http
    1,000 one-shot jobs on a stream that is computed, each with a question of its own, 16 at a time: submitted within
    20 s, all answered, listed within 1 s, and all comes back, consumers of the server included. Who follows the first
    of them when all are over gets its answer.
asks
    10,000 different questions to one stream by 32 clients, or as many as are answered in 100 s, then 200 at once. Each
    is answered, or refused with a reason. The last 250 are no slower than the second 250 by a fifth, and memory is no
    larger by a tenth.

There is no long poll over HTTP to be tried: readers are event streams.

    crowd.py [--quick] [--only PART ...]

`--quick` is a tenth of it, but for the minute that TCP may stall: a look, whose figures are not kept.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import msgspec
from crowd_jobs import asks, jobs_over_http, jobs_over_nats
from crowd_node import (
    CAPTIONS,
    DESK,
    LOOK_S,
    MARGIN_BYTES,
    MIB,
    PROBE_LIMIT_MS,
    Node,
    Outcome,
    Size,
    answering,
    came_back,
    crowd,
    declared,
    ended,
    fed,
    grown,
    probing,
    quiet,
    serving,
    settled,
    standing,
    watched,
    within,
)
from crowd_parts import (
    DeafOrder,
    DeafReport,
    Hook,
    HttpOrder,
    HttpReport,
    NatsOrder,
    NatsReport,
    Seen,
    timing,
)
from measure import ROOT, at_most, keep, say

from streams import subjects

HOOK_LIMIT_MS = 1000.0
TCP_STALL_S, NATS_STALL_S, FILL_S = 60.0, 10.0, 20.0
LOUD_BYTES, LOUD_EVERY_S = 64_000, 0.1
NUM_DEAF = 20
MAX_SERVER_MIB = 2 * NUM_DEAF * (NATS_STALL_S + 5.0) * LOUD_BYTES / LOUD_EVERY_S / MIB
BACK_S = 60.0 * 1.5 + 15.0  # the longest pause of a webhook, and an attempt
NUM_HOOKED = 5
WARM_S = 2.0


QUICK = Size(2.0, 4.0, 8.0, 50, 100, 1000, 100, 5, 20.0)


# --- connections -----------------------------------------------------------------------------------------------


async def connections(node: Node, size: Size) -> Outcome:
    stream = "talk"
    await declared(node, stream)
    await standing(node, stream, 200, stream)
    async with fed(node, stream, 0.5):
        await answering(node, stream, stream)
        baseline = await quiet(node, size.base_s)
    num = size.num_connections
    readers = tuple(
        path for path in (f"/v1/jobs/{stream}/answers?after=-1", f"/v1/answers?stream={stream}&after=-1") * (num // 5)
    )
    order = HttpOrder(
        url=node.url,
        follow=readers,
        num_idle=num * 3 // 10,
        num_loops=num - len(readers) - num * 3 // 10,
        paths=("/healthz", f"/v1/jobs/{stream}", "/v1/nodes", "/v1/signals"),
    )
    over_http = await _crowded(node, stream, "http", order, HttpReport, size.load_s)
    every = NatsOrder(node.nats, num, subjects.answers("*", stream))
    over_nats = await _crowded(node, stream, "nats", every, NatsReport, size.load_s)
    await node.client.cancel(stream)
    wrong = []
    targets: dict[str, Any] = {}
    for way, found in (("http", over_http), ("nats", over_nats)):
        wrong += _wrong(way, found["report"].followed)
        targets |= {f"{way}_{name}": target for name, target in found.pop("targets").items()}
    figures = {"baseline": baseline, "num_connections": num, "http": over_http, "nats": over_nats}
    return Outcome(figures, targets, wrong)


async def _crowded(node: Node, stream: str, kind: str, order: Any, report_kind: Any, seconds: float) -> dict[str, Any]:
    """What the owner sees while a crowd is there, what the crowd sees, and what is left of it."""
    before = node.used()
    async with watched(node) as watch:
        began_s = time.perf_counter()
        async with crowd(kind, order) as many:
            there_s = time.perf_counter() - began_s
            async with fed(node, stream, 0.5), probing(node) as probes:
                await anyio.sleep(seconds)
            probed, during = probes.probed(), node.used()
            report = await ended(many, report_kind)
    left = await settled(node, before)
    return {
        "there_s": round(there_s, 2),
        "probed": probed,
        "report": report,
        "cpu_s_per_s": {
            name: round((during[name].cpu_s - before[name].cpu_s) / (seconds + there_s), 2) for name in before
        },
        "grown_mib": grown(watch, before),
        "most_fds": watch.num_fds,
        "left": left,
        "targets": {**within(probed), **came_back(left)},
    }


def _wrong(who: str, followed: Seen) -> list[str]:
    found = {"missed": followed.num_missed, "seen twice": followed.num_twice}
    said = [f"{who}: {num} answers {what}" for what, num in found.items() if num]
    return said if followed.num_answers else [*said, f"{who}: no answer was seen"]


# --- readers that do not read ----------------------------------------------------------------------------------


async def deaf(node: Node, size: Size) -> Outcome:
    stream = "loud"
    await declared(node, stream)
    await standing(node, stream, LOUD_BYTES, stream)
    async with fed(node, stream, LOUD_EVERY_S):
        await answering(node, stream, stream)
    baseline = await _listened(node, stream, size.base_s, ())
    paths = (f"/v1/jobs/{stream}/answers?after=-1", f"/v1/answers?stream={stream}&after=-1") * (NUM_DEAF // 2)
    before = node.used()
    found = await _listened(node, stream, TCP_STALL_S + 2 * FILL_S, paths)
    await node.client.cancel(stream)
    left = await settled(node, before)
    wrong = [line for who in ("http", "nats") for line in _wrong(f"a good reader over {who}", found[who])]
    wrong += [f"the {who} did not let go of those that never read" for who, s in found["let_go_s"].items() if s is None]
    targets = {
        **within(found["probed"]),
        "good_http_p99_ms": at_most(found["http"].after.p99_ms, PROBE_LIMIT_MS),
        "good_nats_p99_ms": at_most(found["nats"].after.p99_ms, PROBE_LIMIT_MS),
        "http_let_go_s": at_most(found["let_go_s"]["node"] or 1e9, TCP_STALL_S + FILL_S),
        "nats_let_go_s": at_most(found["let_go_s"]["server"] or 1e9, NATS_STALL_S + FILL_S),
        "node_grown_mib": at_most(found["grown_mib"]["node"], MARGIN_BYTES / MIB),
        "server_grown_mib": at_most(found["grown_mib"]["server"], MAX_SERVER_MIB),
        **came_back(left),
    }
    return Outcome({"baseline": baseline, "num_deaf": 2 * NUM_DEAF, "with_deaf": found, "left": left}, targets, wrong)


async def _listened(node: Node, stream: str, most_s: float, paths: Sequence[str]) -> dict[str, Any]:
    """What two good readers and the owner see while something loud is said; with `paths`, beside as many deaf readers
    of these and as many subscribers, until both kinds were let go."""
    good = HttpOrder(url=node.url, follow=(f"/v1/jobs/{stream}/answers?after=-1",))
    also = NatsOrder(node.nats, 1, subjects.answers("*", stream))
    let_go_s: dict[str, float | None] = {}
    async with crowd("http", good) as reader, crowd("nats", also) as subscriber:
        before = node.used()
        async with fed(node, stream, LOUD_EVERY_S), probing(node) as probes, watched(node) as watch:
            if paths:
                let_go_s = await _let_go(node, stream, paths, most_s)
            else:
                await anyio.sleep(most_s)
        over_http, over_nats = await ended(reader, HttpReport), await ended(subscriber, NatsReport)
    return {
        "probed": probes.probed(),
        "http": over_http.followed,
        "nats": over_nats.followed,
        "let_go_s": let_go_s,
        "grown_mib": grown(watch, before),
    }


async def _let_go(node: Node, stream: str, paths: Sequence[str], most_s: float) -> dict[str, float | None]:
    """How long the node, and the server, keep those who never read; None where that is for longer than `most_s`."""
    order = DeafOrder(
        http=node.url, paths=tuple(paths), nats=node.nats, num_nats=len(paths), subject=subjects.answers("*", stream)
    )
    before, found = node.used(), dict[str, float | None](node=None, server=None)
    async with crowd("deaf", order) as many:
        began_s = anyio.current_time()
        with anyio.move_on_after(most_s):
            while None in found.values():
                await anyio.sleep(LOOK_S)
                now = node.used()
                for name, since_s in found.items():
                    if since_s is None and now[name].num_fds < before[name].num_fds + len(paths) // 4:
                        found[name] = round(anyio.current_time() - began_s, 2)
        await ended(many, DeafReport)
    return found


# --- webhooks --------------------------------------------------------------------------------------------------


async def webhooks(node: Node, size: Size) -> Outcome:
    stream = "hooks"
    await declared(node, stream)
    well = [Hook() for _ in range(NUM_HOOKED)]
    down = Hook()
    for hook in well:
        await hook.accept(answers=True)
    good = [await standing(node, stream, 200, f"well-{n}", hook.url) for n, hook in enumerate(well)]
    async with fed(node, stream, LOUD_EVERY_S):
        await answering(node, good[0], stream)
        await anyio.sleep(size.base_s)
    baseline = timing([posted.age_s for hook in well for posted in hook.posted])
    before, since, num_before = node.used(), node.log.stat().st_size, [len(hook.posted) for hook in well]
    bad = [await standing(node, stream, 200, f"down-{n}", down.url) for n in range(NUM_HOOKED)]
    async with watched(node) as watch:
        async with fed(node, stream, LOUD_EVERY_S), probing(node) as probes:
            await anyio.sleep(size.down_s / 2)  # it refuses
            await down.accept(answers=False)
            await anyio.sleep(size.down_s / 2)
        beside = timing([p.age_s for hook, num in zip(well, num_before, strict=True) for p in hook.posted[num:]])
        views = [await node.client.job(job) for job in bad]
        logged = node.logged("webhook", since)
        num_attempts = down.num_attempts
        for job in bad[::2]:  # what is left of a job that has ended is delivered, too
            await node.client.cancel(job)
        owed = {job: await _seqs(node, job, stream) for job in [*good, *bad]}
        await down.accept(answers=True)
        back_s, first_s, all_s = anyio.current_time(), None, None
        with anyio.move_on_after(BACK_S + 30.0):
            while all_s is None:
                await anyio.sleep(LOOK_S)
                if down.posted and first_s is None:
                    first_s = round(anyio.current_time() - back_s, 2)
                if not _lost(owed, bad, [down]):
                    all_s = round(anyio.current_time() - back_s, 2)
    left = await settled(node, before)
    wrong = [f"{len(lost)} of {len(owed[job])} answers lost of {job}" for job, lost in _lost(owed, bad, [down]).items()]
    wrong += [f"{len(lost)} answers lost of {job}" for job, lost in _lost(owed, good, well).items()]
    wrong += [f"{job}: not in order" for job in [*good, *bad] if not _is_in_order(job, [*well, down])]
    figures = {
        "baseline": baseline,
        "beside_one_that_is_down": beside,
        "probed": probes.probed(),
        "num_owed": sum(len(owed[job]) for job in bad),
        "num_attempts_heard_while_deaf": num_attempts,
        "num_twice": sum(
            len(hook.posted) - len({(each.job, each.seq) for each in hook.posted}) for hook in [*well, down]
        ),
        "detail_of_its_jobs": [view.detail for view in views],
        "said_in_the_log": logged[:3],
        "num_lines_logged": len(logged),
        "first_after_back_s": first_s,
        "all_after_back_s": all_s,
        "grown_mib": grown(watch, before),
        "left": left,
    }
    targets = {
        "good_p99_ms": at_most(beside.p99_ms, HOOK_LIMIT_MS),
        "first_after_back_s": at_most(1e9 if first_s is None else first_s, BACK_S),
        "not_said_in_status": at_most(sum(not view.detail for view in views), 0),
        "not_said_in_log": at_most(int(not logged), 0),
        "node_grown_mib": at_most(grown(watch, before)["node"], MARGIN_BYTES / MIB),
        **within(probes.probed()),
        **came_back(left),
    }
    for job in [*good, *bad]:
        await node.client.cancel(job)
    for hook in [*well, down]:
        await hook.close()
    return Outcome(figures, targets, wrong)


async def _seqs(node: Node, job: str, stream: str) -> list[int]:
    return [stored.seq async for stored in node.ledger.every(subjects.answers(job, stream))]


def _lost(owed: dict[str, list[int]], jobs: Sequence[str], hooks: Sequence[Hook]) -> dict[str, list[int]]:
    """Of these jobs, the answers that did not come."""
    came: dict[str, set[int]] = {}
    for hook in hooks:
        for posted in hook.posted:
            came.setdefault(posted.job, set()).add(posted.seq)
    lost = {job: sorted(set(owed[job]) - came.get(job, set())) for job in jobs}
    return {job: seqs for job, seqs in lost.items() if seqs}


def _is_in_order(job: str, hooks: Sequence[Hook]) -> bool:
    seqs = [posted.seq for hook in hooks for posted in hook.posted if posted.job == job]
    return seqs == sorted(seqs)


# --- all of it -------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Node, Size], Awaitable[Outcome]]] = {
    "connections": connections,
    "deaf": deaf,
    "webhooks": webhooks,
    "jobs_over_nats": jobs_over_nats,
    "jobs_over_http": jobs_over_http,
    "asks": asks,
}


async def all_parts(size: Size, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="penstock-crowd-", ignore_cleanup_errors=True) as folder:
        clip = _clip(Path(folder) / "clip.mkv")
        for name in names:
            say(f"{name} ...")
            began_s = time.perf_counter()
            (Path(folder) / name).mkdir()
            async with serving(Path(folder) / name, clip) as node:
                await node.bring(DESK, clip)
                await quiet(node, WARM_S)
                outcome = await PARTS[name](node, size)
                logged = node.events()
            took_s = time.perf_counter() - began_s
            say(f"{name}: {took_s:.0f} s; {outcome.wrong or 'correct'}")
            found[name] = {"took_s": round(took_s, 1), "logged": logged, **outcome.figures}
            targets |= {f"{name}_{target}": value for target, value in outcome.targets.items()}
            wrong += [f"{name}: {line}" for line in outcome.wrong]
    missed = [name for name, target in targets.items() if not target.met]
    return {
        "correct": not wrong,
        "why_not": wrong,
        "targets_missed": missed,
        "targets": targets,
        **found,
    }


def _clip(path: Path) -> bytes:
    """Two seconds with captions, as small as can be."""
    sys.path.append(str(ROOT / "tests"))
    zoo: Any = import_module("media_zoo")
    zoo.make(path, video="libx264", captions=CAPTIONS, seconds=2.0, options={"g": "25"})
    return path.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="these parts")
    asked = parser.parse_args()
    figures = anyio.run(all_parts, QUICK if asked.quick else Size(), asked.only)
    if asked.quick or asked.only != list(PARTS):
        print(msgspec.json.encode({"benchmark": "crowd", **figures}).decode())
    else:
        keep("crowd", figures)
    return 0 if figures["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
