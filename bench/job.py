"""The demo's job against the same work done in sequence, and against what the machine allows.

Each round runs, one after another: the engine with twelve questions over an empty store; `bench/sequential.py` in both
its ways; the engine with one question over an empty store, then with another question over what that left; and the
script with one question; then, with a node that is up (`penstock serve`), a client that sends the clip and asks all but
one of the questions, and one that asks that one. Walls are of whole processes, from before the start until they are
gone; those of the node's clients do not contain the node's start.

The limit on c cores, taken from the ledger of the run itself (what each result cost, s) and from what the script saw
each model take to load (s), is the larger of

    total  = (sum over stages of load and of compute of every output) / c
    chain  = max over answers of F,    F(stage, n) = compute + max(load(stage), max over its sources of F(source, n))

where compute includes what was decoded for it, and a range waits for the last of its segments. No schedule on c cores
beats it; it leaves out starting Python and NATS. Compute in the ledger is wall time while all cores are busy, so the
same limit is also given with the times of the script, which had the machine to itself ("undisturbed"): lower, and
stricter. Cores that share caches and memory slow each other down, so what they allow over one is measured too: as many
scripts at once as there are cores.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from measure import Spread, at_least, at_most, keep, num_cores, say, spread, timed_process

from engine.decide.answer import Answer
from engine.spec.catalogue import installed
from engine.spec.operator import Reduce
from engine.spec.plan import Plan, make_plan
from penstock.cli.show import is_right
from penstock.demo import Question, clip, questions, workflow
from penstock.places import this_machine
from streams import subjects
from streams.media.probe import probe
from streams.media.segmenter import stream_id
from streams.records import Gap, decode_result
from streams.subjects import Key
from streams.wire.ledger import open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

WORKFLOW = Path(__file__).resolve().parent.parent / "examples" / "video_qa.toml"
SCRIPT = Path(__file__).resolve().parent / "sequential.py"
SEGMENT_S = 5.0

Costs = Mapping[str, Mapping[Key, float]]  # of each output, by stage id, s
Loads = Mapping[str, float]  # by rung, s


class Engine(msgspec.Struct):
    """One run of the engine, as a process."""

    wall_s: float
    answers: list[Answer]

    @property
    def latency_s(self) -> float:
        """From the job's start to its last answer."""
        return max(answer.latency_s for answer in self.answers)

    @property
    def texts(self) -> dict[str, str]:
        return {answer.question: answer.answer for answer in self.answers}


class Sequential(msgspec.Struct):
    """One run of the script, as a process."""

    wall_s: float
    report: dict[str, Any]

    @property
    def texts(self) -> dict[str, str]:
        return dict(self.report["answers"])


class Round(msgspec.Struct):
    """One run of everything."""

    many: Engine
    segments: Sequential
    whole: Sequential
    first: Engine
    second: Engine
    one_segments: Sequential
    on_node: Engine  # all questions, asked of a node that is up and has no model loaded yet
    on_node_second: Engine  # a question to the same node afterwards, whose answer is not stored
    crowd_s: float  # until as many copies of the script at once as there are cores are done
    limit_s: float
    total_s: float
    chain_s: float
    undisturbed_s: float


def engine(asks: Sequence[str], store: Path) -> Engine:
    given = [part for ask in asks for part in ("--ask", ask)]
    run = [sys.executable, "-m", "penstock", "run", str(WORKFLOW), "--input", str(clip())]
    done = timed_process([*run, "--json", "--store", str(store), *given])
    answers = [msgspec.json.decode(line, type=Answer) for line in done.output.splitlines()]
    say(f"  engine, {len(asks)} questions: {done.wall_s:.2f} s")
    return Engine(done.wall_s, answers)


CLIENT = """
import sys, anyio, msgspec, penstock

async def main():
    async with penstock.connect() as p:
        job = await p.run(sys.argv[2:], inputs=[sys.argv[1]])
        async for answer in job.answers():
            print(msgspec.json.encode(answer).decode())

anyio.run(main)
"""


@contextmanager
def node(store: Path) -> Iterator[dict[str, str]]:
    """A node that is up; the environment in which its clients find it."""
    environment = {**os.environ, "PENSTOCK_STORE": str(store)}
    serve = [sys.executable, "-m", "penstock", "serve", "--http", "none"]
    process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        while "Ctrl-C" not in process.stderr.readline():
            if process.poll() is not None:
                raise RuntimeError("the node did not come up")
        yield environment
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def asked_of(environment: dict[str, str], command: Sequence[str], what: str) -> Engine:
    done = timed_process(command, environment)
    answers = [msgspec.json.decode(line, type=Answer) for line in done.output.splitlines()]
    say(f"  on a node that is up, {what}: {done.wall_s:.2f} s")
    return Engine(done.wall_s, answers)


def sequential(asks: Sequence[str], media: str) -> Sequential:
    given = [part for ask in asks for part in ("--ask", ask)]
    done = timed_process([sys.executable, str(SCRIPT), "--input", str(clip()), "--media", media, *given])
    say(f"  sequential, {media}, {len(asks)} questions: {done.wall_s:.2f} s")
    return Sequential(done.wall_s, msgspec.json.decode(done.output))


def crowd(asks: Sequence[str]) -> float:
    """Wall time of as many copies of the script at once as there are cores: what the cores slow each other down."""
    with ThreadPoolExecutor(num_cores()) as threads:
        runs = [threads.submit(sequential, asks, "segments") for _ in range(num_cores())]
    return max(run.result().wall_s for run in runs)


def one_round(asked: Sequence[Question], plan: Plan, stream: str) -> Round:
    asks = [item.question for item in asked]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        many = engine(asks, Path(folder, "many"))
        segments = sequential(asks, "segments")
        whole = sequential(asks, "whole")
        first = engine(asks[:1], Path(folder, "one"))
        second = engine(asks[1:2], Path(folder, "one"))
        one_segments = sequential(asks[:1], "segments")
        with node(Path(folder, "node")) as environment:
            client = [sys.executable, "-c", CLIENT, str(clip())]
            on_node = asked_of(environment, [*client, *asks[:1], *asks[2:]], f"{len(asks) - 1} questions")
            ask = [sys.executable, "-m", "penstock", "ask", "--stream", stream, asks[1], "--json"]
            on_node_second = asked_of(environment, ask, "one more")
        crowd_s = crowd(asks)
        costs = anyio.run(recorded, Path(folder, "many"), plan, stream)
    loads = segments.report["load_s"]
    total_s, chain_s = total(plan, costs, loads) / num_cores(), chain(plan, costs, loads)
    alone = undisturbed(plan, costs, segments.report["process_s"])
    return Round(
        many,
        segments,
        whole,
        first,
        second,
        one_segments,
        on_node,
        on_node_second,
        crowd_s,
        limit_s=max(total_s, chain_s),
        total_s=total_s,
        chain_s=chain_s,
        undisturbed_s=max(
            (segments.report["decode_s"] + total(plan, alone, loads)) / num_cores(), chain(plan, alone, loads)
        ),
    )


# --- the limit -----------------------------------------------------------------------------------------------


async def recorded(store: Path, plan: Plan, stream: str) -> Costs:
    """What each output in a store's ledger cost. Raises ValueError where one is missing or a gap."""
    costs: dict[str, dict[Key, float]] = {}
    async with embedded(store) as url, connect(url) as link:
        ledger = await open_ledger(link)
        for stage in plan.stages:
            found = await ledger.get_many(await ledger.subjects(subjects.results_of(stage.id, stream)))
            records = [decode_result(stored.data) for stored in found.values()]
            if not records or any(isinstance(record, Gap) or record.measured is None for record in records):
                raise ValueError(f"stage {stage.name} lacks results: there is nothing to take a limit from")
            costs[stage.id] = {
                Key(record.first, record.last): record.measured.decode_s + record.measured.compute_s
                for record in records
                if not isinstance(record, Gap) and record.measured is not None
            }
    return costs


def undisturbed(plan: Plan, costs: Costs, process_s: Mapping[str, Sequence[float]]) -> Costs:
    """The same outputs at the script's times; it calls each rung once for each output, in the same order."""
    queues = {rung: iter(times) for rung, times in process_s.items()}
    return {stage.id: {key: next(queues[stage.rung.rung]) for key in sorted(costs[stage.id])} for stage in plan.stages}


def total(plan: Plan, costs: Costs, loads: Loads) -> float:
    """All compute, each model loaded once."""
    rungs = {stage.rung.rung for stage in plan.stages}
    return sum(loads[rung] for rung in rungs) + sum(sum(found.values()) for found in costs.values())


def chain(plan: Plan, costs: Costs, loads: Loads) -> float:
    """The longest way to an answer, were there a core for everything. Stages of a plan stand after their sources."""
    finished: dict[str, dict[Key, float]] = {}
    for stage in plan.stages:
        sources = [finished[source] for source in stage.sources if source in finished]
        finished[stage.id] = {}
        for key, cost in costs[stage.id].items():
            whole = isinstance(stage.scope, Reduce)
            ready = [at for source in sources for known, at in source.items() if whole or known == key]
            finished[stage.id][key] = max([loads[stage.rung.rung], *ready]) + cost
    return max(max(finished[id].values()) for id in plan.answers)


# --- figures -------------------------------------------------------------------------------------------------


def figures(rounds: Sequence[Round], asked: Sequence[Question]) -> dict[str, Any]:
    def median(ratio: Callable[[Round], float]) -> float:
        return statistics.median(ratio(each) for each in rounds)

    def all_of(value: Callable[[Round], float]) -> Spread:
        return spread([value(each) for each in rounds])

    return {
        "correct": all(is_correct(each, asked) for each in rounds),
        "right": {
            "engine": [num_right(asked, each.many.texts) for each in rounds],
            "sequential_segments": [num_right(asked, each.segments.texts) for each in rounds],
            "sequential_whole": [num_right(asked, each.whole.texts) for each in rounds],
            "of": len(asked),
        },
        "same_answers": {
            "sequential_segments": all(each.many.texts == each.segments.texts for each in rounds),
            "sequential_whole": all(each.many.texts == each.whole.texts for each in rounds),
        },
        "targets": {
            "sequential_segments_over_engine": at_least(median(lambda r: r.segments.wall_s / r.many.wall_s), 1.5),
            "sequential_whole_over_engine": at_least(median(lambda r: r.whole.wall_s / r.many.wall_s), 1.5),
            "one_question_sequential_over_engine": at_least(
                median(lambda r: r.one_segments.wall_s / r.first.wall_s), 1.5
            ),
            "engine_over_limit": at_most(median(lambda r: r.many.wall_s / r.limit_s), 1.2),
            "engine_over_limit_undisturbed": at_most(median(lambda r: r.many.wall_s / r.undisturbed_s), 1.2),
            "sequential_segments_over_node": at_least(median(lambda r: r.segments.wall_s / r.on_node.wall_s), 1.5),
            "node_over_limit": at_most(median(lambda r: r.on_node.wall_s / r.limit_s), 1.2),
            "first_over_second_on_node_wall": at_least(
                median(lambda r: r.on_node.wall_s / r.on_node_second.wall_s), 20
            ),
            "first_over_second_latency": at_least(median(lambda r: r.first.latency_s / r.second.latency_s), 20),
            "first_over_second_wall": at_least(median(lambda r: r.first.wall_s / r.second.wall_s), 20),
        },
        # What perfect use of the cores would gain over the script, and how much of it the engine does gain.
        "cores_allow": all_of(lambda r: num_cores() * r.segments.wall_s / r.crowd_s),
        "gained_of_it": all_of(lambda r: r.crowd_s / num_cores() / r.many.wall_s),
        "wall_s": {
            "crowd_of_scripts": all_of(lambda r: r.crowd_s),
            "engine": all_of(lambda r: r.many.wall_s),
            "sequential_segments": all_of(lambda r: r.segments.wall_s),
            "sequential_whole": all_of(lambda r: r.whole.wall_s),
            "engine_one_question": all_of(lambda r: r.first.wall_s),
            "engine_second_question": all_of(lambda r: r.second.wall_s),
            "sequential_segments_one_question": all_of(lambda r: r.one_segments.wall_s),
            "on_node": all_of(lambda r: r.on_node.wall_s),
            "on_node_second_question": all_of(lambda r: r.on_node_second.wall_s),
        },
        "latency_s": {
            "engine": all_of(lambda r: r.many.latency_s),
            "engine_one_question": all_of(lambda r: r.first.latency_s),
            "engine_second_question": all_of(lambda r: r.second.latency_s),
        },
        "limit_s": {
            "limit": all_of(lambda r: r.limit_s),
            "total_over_cores": all_of(lambda r: r.total_s),
            "chain": all_of(lambda r: r.chain_s),
            "undisturbed": all_of(lambda r: r.undisturbed_s),
        },
        "threads": {
            "engine": f"{num_cores()} batches at a time, one thread for each decoder and model",
            "sequential_segments": rounds[0].segments.report["threads"],
            "sequential_whole": rounds[0].whole.report["threads"],
        },
        "load_s": rounds[-1].segments.report["load_s"],
        "num_rounds": len(rounds),
    }


def is_correct(each: Round, asked: Sequence[Question]) -> bool:
    """Every question answered, without a gap, and as the script that does the same work answers it."""
    runs = (each.many, each.first, each.second, each.on_node, each.on_node_second)
    complete = all(not answer.gaps for run in runs for answer in run.answers)
    expected = each.segments.texts
    one_by_one = {**each.first.texts, **each.second.texts}
    return (
        complete
        and each.many.texts == expected
        and {**each.on_node.texts, **each.on_node_second.texts} == expected
        and set(expected) == {item.question for item in asked}
        and len(one_by_one) == 2
        and all(expected[question] == answer for question, answer in one_by_one.items())
    )


def num_right(asked: Sequence[Question], texts: Mapping[str, str]) -> int:
    return sum(is_right(item, texts.get(item.question, "")) for item in asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    num_rounds = parser.parse_args().rounds
    asked = questions()
    asks = [item.question for item in asked]
    make = partial(make_plan, workflow().for_asks(asks), installed(), this_machine())
    plan, stream = make(probe(str(clip()))), stream_id(clip(), SEGMENT_S)
    rounds = []
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}")
        rounds.append(one_round(asked, plan, stream))
    found = figures(rounds, asked)
    keep("job", found)
    return 0 if found["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
