"""What it costs to ask again: the same question in more jobs on a stream, and ten questions on one stream.

The workflow is the demo's (examples/video_qa.toml) on its clip, pushed as a durable stream to a running node; the jobs
are standing ones, whose window is as long as the clip, submitted before the clip comes and over when it ends. A job on
another stream keeps the models loaded meanwhile, so no run pays for that.

Costs are taken twice: as the results tell (the sum of compute over all records of the stream), and as the kernel tells
(CPU of the worker, with all it started, and of the node, from before the jobs are submitted until they are done).

- the n-th identical job: the slope of the cost over n = 1, 2, 5, 10 jobs with one question (least squares over the
  medians of two runs each), over the cost at 1;
- ten questions: the cost of ten jobs, each with a question of its own, on one stream, over the median of one;
- the peer: those ten jobs one after another, each on a stream of its own name, so that nothing can be shared.

    share.py [--questions N]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
from live_parts import FeedReport, Rig, rig
from measure import at_most, keep, say

from engine.decide.answer import Answer
from engine.node.submission import JobRequest
from penstock import demo
from penstock.cli.show import is_right
from streams import subjects
from streams.records import Gap, decode_result

SEGMENT_S, WINDOW_S = 5.0, 90.0
IDENTICAL = (1, 2, 5, 10)
NUM_ROUNDS = 2
MAX_RUN_S = 300.0
IDLE_S = 5.0


class Run(msgspec.Struct):
    """Some jobs on a stream of their own."""

    questions: list[str]
    compute_s: float
    worker_cpu_s: float
    node_cpu_s: float
    server_cpu_s: float
    wall_s: float
    num_results: int
    num_gaps: int
    num_shared: int  # stages that the jobs found wanted by others already
    said: dict[str, list[list[tuple[int, str]]]]  # by question, for each of its jobs: segment and answer

    @property
    def cpu_s(self) -> float:
        return self.worker_cpu_s + self.node_cpu_s


async def one_run(live: Rig, stream: str, questions: Sequence[str]) -> Run:
    """A job for each of the questions on the clip as a stream of this name."""
    await live.declare(stream, policy="durable", segment_s=SEGMENT_S)
    before, began_s = live.used(), time.perf_counter()
    asked = [JobRequest(stream=stream, asks=(question,), standing=True, window_s=WINDOW_S) for question in questions]
    jobs = [await live.submit(request) for request in asked]
    await live.ready()
    async with live.feed(pushed=stream, segment_s=SEGMENT_S) as feeder:
        await feeder.report(FeedReport)
    if left := await live.drained(jobs, MAX_RUN_S):
        raise RuntimeError(f"{stream}: {len(left)} of {len(jobs)} jobs are not done after {MAX_RUN_S:.0f} s")
    after, wall_s = live.used(), time.perf_counter() - began_s
    records = [decode_result(item.data) async for item in live.ledger.every(subjects.results_of("*", stream))]
    results = [record for record in records if not isinstance(record, Gap)]
    said: dict[str, list[list[tuple[int, str]]]] = {question: [] for question in questions}
    for question, job in zip(questions, jobs, strict=True):
        stored = [item.data async for item in live.ledger.every(subjects.answers(job.job, stream))]
        answers = [msgspec.json.decode(data, type=Answer) for data in stored]
        said[question].append([(answer.last, answer.answer) for answer in answers])
    run = Run(
        questions=list(questions),
        compute_s=sum(result.measured.compute_s for result in results if result.measured is not None),
        worker_cpu_s=after["worker"].cpu_s - before["worker"].cpu_s,
        node_cpu_s=after["node"].cpu_s - before["node"].cpu_s,
        server_cpu_s=after["server"].cpu_s - before["server"].cpu_s,
        wall_s=wall_s,
        num_results=len(results),
        num_gaps=len(records) - len(results),
        num_shared=sum(len(job.shared) for job in jobs),
        said=said,
    )
    say(f"  {stream}: {run.compute_s:.2f} s of compute, {run.cpu_s:.2f} s of CPU, {wall_s:.1f} s")
    return run


async def all_runs(questions: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        async with rig(Path(folder)) as live:
            await keep_warm(live, questions[0])
            idle = await idle_cpu(live)
            alone: list[Run] = []
            same: dict[int, list[Run]] = {num: [] for num in IDENTICAL}
            for number, question in enumerate(questions):  # interleaved, for the machine may change meanwhile
                alone.append(await one_run(live, f"alone-{number}", [question]))
                if number < NUM_ROUNDS * len(IDENTICAL):
                    num = IDENTICAL[number % len(IDENTICAL)]
                    same[num].append(await one_run(live, f"same-{num}-{number}", [questions[0]] * num))
            ten = await one_run(live, "together", questions)
    return figures(alone, same, ten, idle)


async def keep_warm(live: Rig, question: str) -> None:
    """A job that has seen the clip and goes on wanting the models. Its stream does not end."""
    await live.declare("warm", policy="durable", segment_s=SEGMENT_S)
    job = await live.submit(JobRequest(stream="warm", asks=(question,), standing=True, window_s=WINDOW_S))
    await live.ready()
    async with live.feed(looped=("warm",), segment_s=SEGMENT_S, num_segments=8):
        spec = await live.registry.job(job.job)
        with anyio.fail_after(MAX_RUN_S):
            while len(await live.ledger.subjects(subjects.results_of(spec.plan.answers[0], "warm"))) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.2)


async def idle_cpu(live: Rig) -> dict[str, float]:
    """What the processes use while nothing comes, s in a second."""
    before = live.used()
    await anyio.sleep(IDLE_S)
    after = live.used()
    return {name: round((after[name].cpu_s - before[name].cpu_s) / IDLE_S, 4) for name in before}


# --- figures ---------------------------------------------------------------------------------------------------


def figures(
    alone: Sequence[Run], same: Mapping[int, Sequence[Run]], ten: Run, idle: Mapping[str, float]
) -> dict[str, Any]:
    costs: dict[str, Callable[[Run], float]] = {"compute": lambda run: run.compute_s, "cpu": lambda run: run.cpu_s}
    one = {by: statistics.median(cost(run) for run in [*alone, *same[1]]) for by, cost in costs.items()}
    num_results = [run.num_results for runs in same.values() for run in runs]
    correct, why = is_correct(alone, [run for runs in same.values() for run in runs], ten)
    truth = {item.question: item for item in demo.questions()}
    final = {question: jobs[0][-1][1] if jobs[0] else "" for question, jobs in ten.said.items()}
    return {
        "correct": correct,
        "why_not": why,
        "right": {
            "together": sum(is_right(truth[question], said) for question, said in final.items()),
            "of": len(final),
        },
        "targets": {
            "identical_jobs_more_results": at_most(max(num_results) - min(num_results), 0),
            **{f"identical_job_{by}": at_most(slope(same, cost) / one[by], 0.02) for by, cost in costs.items()},
            **{
                f"{len(alone)}_questions_over_one_{by}": at_most(cost(ten) / one[by], 1.3) for by, cost in costs.items()
            },
        },
        "sequential_over_shared": {by: round(sum(map(cost, alone)) / cost(ten), 2) for by, cost in costs.items()},
        "idle_cpu_s_per_s": idle,
        "identical": {str(num): [summary(run) for run in runs] for num, runs in same.items()},
        "together": summary(ten),
        "alone": [summary(run) for run in alone],
    }


def slope(same: Mapping[int, Sequence[Run]], cost: Callable[[Run], float]) -> float:
    """What one more job costs: of the line nearest to the medians, by least squares."""
    medians = [statistics.median(map(cost, runs)) for runs in same.values()]
    return statistics.linear_regression(list(same), medians).slope


def summary(run: Run) -> dict[str, float]:
    fields = ("compute_s", "worker_cpu_s", "node_cpu_s", "server_cpu_s", "wall_s", "num_results", "num_shared")
    return {field: round(getattr(run, field), 3) for field in fields}


def is_correct(alone: Sequence[Run], same: Sequence[Run], ten: Run) -> tuple[bool, list[str]]:
    """No gap, and everybody who asks the same is told the same, shared or not."""
    expected = {question: jobs[0] for run in alone for question, jobs in run.said.items()}
    runs = [*alone, *same, ten]
    why = [f"{run.num_gaps} gaps with {len(run.questions)} jobs" for run in runs if run.num_gaps]
    why += [
        f"{question!r} with {len(run.questions)} jobs: {said}, not {expected[question]}"
        for run in runs
        for question, jobs in run.said.items()
        for said in jobs
        if said != expected[question]
    ]
    why += [f"{question!r}: never answered" for question, said in expected.items() if not said]
    return not why, why[:10]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10, choices=(8, 9, 10), help="different ones, of the demo's")
    num = parser.parse_args().questions
    questions = [item.question for item in demo.questions() if item.answerable][:num]
    found = anyio.run(all_runs, questions)
    keep("share", found)
    return 0 if found["correct"] else 1


if __name__ == "__main__":
    sys.exit(main())
