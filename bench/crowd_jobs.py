"""Jobs and questions by the thousand, for bench/crowd.py: how fast they are taken, whether all are answered."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio
import msgspec
from crowd_node import (
    EXPECTED,
    LOOK_S,
    MIB,
    SETTLE_S,
    Node,
    Outcome,
    Size,
    came_back,
    crowd,
    grown,
    probing,
    settled,
    watched,
    within,
)
from crowd_parts import STEP, AsksOrder, AsksReport, kind_of, question, timing
from live_parts import Part, Used
from measure import at_most, say

from streams import subjects
from streams.errors import PenstockError, Transient

SUBMIT_LIMIT_S, LIST_LIMIT_MS = 20.0, 1000.0
NUM_AT_ONCE = 16  # that submit
DONE_S = 120.0  # for all jobs to be answered
RETRY_S, MAX_RETRIES = 0.1, 200
NUM_LISTED = 5
FIRST_ALONE, FIRST_AT_ONCE = 15_000, 16_000  # the numbers of other questions
MARGIN_CONSUMERS = 10
MARGIN_FDS_ASKS = 4
FOLLOWED = "its answer, and the end"

# --- jobs ------------------------------------------------------------------------------------------------------


async def jobs_over_nats(node: Node, size: Size) -> Outcome:
    return await _jobs(node, size, _over_nats)


async def jobs_over_http(node: Node, size: Size) -> Outcome:
    return await _jobs(node, size, _over_http)


Submit = Callable[[Node, str, str], Awaitable[str]]


async def _over_nats(node: Node, stream: str, text: str) -> str:
    return (await node.client.submit(stream, (text,))).id


async def _over_http(node: Node, stream: str, text: str) -> str:
    response = await node.http.post("/v1/jobs", json={"stream": stream, "asks": [text]})
    if response.status_code == 503:
        raise Transient(response.json()["detail"])
    if response.status_code != 201:
        raise PenstockError(f"{response.status_code} {response.text[:200]}")
    return str(response.json()["job"])


async def _jobs(node: Node, size: Size, submit: Submit) -> Outcome:
    stream = "computed"
    await node.bring(stream, node.clip)
    baseline = []
    for number in range(size.num_alone):
        began_s = time.perf_counter()
        job = await submit(node, stream, question(FIRST_ALONE + number))
        await _answered(node, job, stream)
        baseline.append(time.perf_counter() - began_s)
    before, consumers = node.used(), await node.num_consumers()
    numbers, ids, took_s, refused = iter(range(size.num_jobs)), list[str](), list[float](), Counter[str]()

    async def submit_on() -> None:
        for number in numbers:
            began_s = time.perf_counter()
            for _ in range(MAX_RETRIES):
                try:
                    ids.append(await submit(node, stream, question(number)))
                    break
                except Transient as error:
                    refused[kind_of(error)] += 1
                await anyio.sleep(RETRY_S)
            took_s.append(time.perf_counter() - began_s)

    async with watched(node) as watch, probing(node) as probes:
        began_s = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(NUM_AT_ONCE):
                tasks.start_soon(submit_on)
        submitted_s = time.perf_counter() - began_s
        listed_while = await _listed(node)
        done_s = await _all_answered(node, ids, stream, began_s)
    listed_after = await _listed(node)
    right, twice = await _right(node, ids, stream)
    states = Counter(view.state for view in await node.client.jobs(stream))
    left = await settled(node, before)
    more = await _consumers_left(node, consumers)
    figures = {
        "baseline_from_submit_to_answer": timing(baseline),
        "num": len(ids),
        "submitted_s": round(submitted_s, 2),
        "submit": timing(took_s),
        "refused_and_tried_again": dict(refused),
        "all_answered_s": done_s,
        "num_right": right,
        "num_twice": twice,
        "probed": probes.probed(),
        "list_while_they_run": listed_while,
        "list_after": listed_after,
        "states_after": dict(states),
        "following_the_first_afterwards": (followed := await _followed(node, ids[0], stream)),
        "grown_mib": grown(watch, before),
        "left": left,
        "consumers_left": more,
        "stream_forgotten": await _forgotten(node, stream),
    }
    targets = {
        "submitted_s": at_most(submitted_s, SUBMIT_LIMIT_S),
        "all_answered_s": at_most(1e9 if done_s is None else done_s, DONE_S),
        "list_while_they_run_ms": at_most(max(each.max_ms for each in listed_while.values()), LIST_LIMIT_MS),
        "list_after_ms": at_most(max(each.max_ms for each in listed_after.values()), LIST_LIMIT_MS),
        "consumers_left": at_most(more, MARGIN_CONSUMERS),
        "following_the_first_fails": at_most(int(followed != FOLLOWED), 0),
        **within(probes.probed()),
        **came_back(left),
    }
    wrong = [f"{len(ids) - right} of {len(ids)} jobs have no right answer"] if right < len(ids) else []
    wrong += [f"{size.num_jobs - len(ids)} jobs were not taken"] if len(ids) < size.num_jobs else []
    wrong += [f"{twice} answers came twice"] if twice else []
    return Outcome(figures, targets, wrong)


async def _consumers_left(node: Node, before: int) -> int:
    """How many more there are than before, once as many as can have gone."""
    more = await node.num_consumers() - before
    with anyio.move_on_after(SETTLE_S):
        while more > MARGIN_CONSUMERS:
            await anyio.sleep(LOOK_S)
            more = await node.num_consumers() - before
    return more


async def _answered(node: Node, job: str, stream: str) -> None:
    with anyio.fail_after(DONE_S):
        while await node.ledger.get(subjects.answers(job, stream)) is None:  # noqa: ASYNC110 - a node stores it
            await anyio.sleep(0.005)


async def _all_answered(node: Node, ids: Sequence[str], stream: str, began_s: float) -> float | None:
    """When each job had an answer; None where not all have one within DONE_S."""
    wanted = {subjects.answers(job, stream) for job in ids}
    with anyio.move_on_after(DONE_S):
        while not wanted <= await node.ledger.subjects(subjects.answers("*", stream)):  # noqa: ASYNC110
            await anyio.sleep(LOOK_S)
        return round(time.perf_counter() - began_s, 2)
    return None


async def _right(node: Node, ids: Sequence[str], stream: str) -> tuple[int, int]:
    """How many jobs have the right answer, and how many answers there are beyond one."""
    wanted, found = set(ids), Counter[str]()
    async for stored in node.ledger.every(subjects.answers("*", stream)):
        job = stored.subject.split(".")[2]
        if job in wanted and EXPECTED in msgspec.json.decode(stored.data)["answer"]:
            found[job] += 1
    return len(found), found.total() - len(found)


async def _listed(node: Node) -> dict[str, Any]:
    took_s: dict[str, list[float]] = {"nats": [], "http": []}
    for _ in range(NUM_LISTED):
        began_s = time.perf_counter()
        await node.client.jobs()
        took_s["nats"].append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        (await node.http.get("/v1/jobs")).raise_for_status()
        took_s["http"].append(time.perf_counter() - began_s)
    return {way: timing(seconds) for way, seconds in took_s.items()}


async def _followed(node: Node, job: str, stream: str) -> str:
    """What somebody finds who asks for the answers of a job, as they are asked for in README.md, when it is over."""
    num = 0
    try:
        with anyio.fail_after(20.0):
            async for _ in node.client.answers(job=job, stream=stream, until_done=True):
                num += 1
    except (PenstockError, TimeoutError) as error:
        return f"{num} answers, then {kind_of(error)}"
    return FOLLOWED if num == 1 else f"{num} answers, and the end"


async def _forgotten(node: Node, stream: str) -> dict[str, Any]:
    """What forgetting the stream takes, and what is left then."""
    began_s = time.perf_counter()
    await node.client.forget(stream)
    took_s = time.perf_counter() - began_s
    answers = await node.ledger.subjects(subjects.answers("*", stream))
    return {"forget_stream_s": round(took_s, 2), "answers_left": len(answers), "consumers": await node.num_consumers()}


# --- questions -------------------------------------------------------------------------------------------------


async def asks(node: Node, size: Size) -> Outcome:
    stream = "asked"
    await node.bring(stream, node.clip)
    order = AsksOrder(
        url=node.nats,
        stream=stream,
        expected=EXPECTED,
        first=0,
        num=size.num_asks,
        num_clients=32,
        step=size.step,
        most_s=size.most_asks_s,
    )
    alone = msgspec.structs.replace(order, first=FIRST_ALONE, num=size.num_alone, num_clients=1)
    baseline, _ = await _asked(node, alone)
    before, consumers = node.used(), await node.num_consumers()
    async with probing(node) as probes:
        found, held = await _asked(node, order)
    burst = msgspec.structs.replace(order, first=FIRST_AT_ONCE, num=200, num_clients=20, num_at_once=10)
    at_once, _ = await _asked(node, burst)
    left = await settled(node, before)
    more = await _consumers_left(node, consumers)
    second, last = (held[min(1, len(held) - 1)], held[-1]) if held else (before, node.used())
    growth = {
        name: {
            "fds": last[name].num_fds - second[name].num_fds,
            "mib": round((last[name].own_bytes - second[name].own_bytes) / MIB, 1),
            "ratio": round(last[name].own_bytes / max(1, second[name].own_bytes), 3),
        }
        for name in before
    }
    slower = found.steps[-1].took.p50_ms / found.steps[min(1, len(found.steps) - 1)].took.p50_ms if found.steps else 1.0
    wrong = [f"{report.num_wrong} wrong answers" for report in (found, at_once) if report.num_wrong]
    wrong += [f"no word: {report.unanswered}" for report in (found, at_once) if report.unanswered]
    figures = {
        "baseline": baseline.took,
        "asked": found,
        "per_s": round(found.num_asked / max(found.wall_s, 0.001), 1),
        "probed": probes.probed(),
        "all_at_once": at_once,
        "from_the_second_step_to_the_last": growth,
        "held_mib": [{name: round(each[name].own_bytes / MIB, 1) for name in each} for each in held],
        "consumers_left": more,
        "left": left,
    }
    targets = {
        "not_asked": at_most(size.num_asks - found.num_asked, 0),
        "without_a_word": at_most(sum(found.unanswered.values()) + sum(at_once.unanswered.values()), 0),
        "last_step_over_second": at_most(slower, 1.2),
        **{f"{name}_last_over_second": at_most(each["ratio"], 1.1) for name, each in growth.items()},
        **{f"{name}_fds_grown": at_most(each["fds"], MARGIN_FDS_ASKS) for name, each in growth.items()},
        "consumers_left": at_most(more, MARGIN_CONSUMERS),
        **within(probes.probed()),
    }
    return Outcome(figures, targets, wrong)


async def _asked(node: Node, order: AsksOrder) -> tuple[AsksReport, list[dict[str, Used]]]:
    """A crowd that asks, and what the processes hold after each step."""
    held: list[dict[str, Used]] = []
    async with crowd("asks", order) as many:
        with anyio.fail_after(order.most_s + 2 * order.timeout_s):
            async for line in _lines(many):
                if STEP not in msgspec.json.decode(line):
                    return msgspec.json.decode(line, type=AsksReport), held
                held.append(node.used())
                say(f"  {msgspec.json.decode(line)[STEP]} questions")
    raise RuntimeError("a crowd without a report")


async def _lines(many: Part) -> AsyncIterator[bytes]:
    while True:
        yield await many.line()
