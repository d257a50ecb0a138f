"""Whether `penstock capacity` is right: how many live streams it says fit, and how many the running engine carries.

predicted    by what was measured of the stages on the clip, and the simulator
carried      the most streams, of those tried, of which 99 of 100 segments are answered whole and within the bound by
             the real engine: NATS, decoding, real models, a process for the node and one for its worker
overhead     processor time of all parts but computing and decoding, for a segment; under load what is computed takes
             longer than its processor time, so it is measured with few streams (--overhead)

All streams show the same clip, so nothing is tried here that hears: what was heard of the same sound is known.

capacity.py [--seconds 60] [--case cameras] [--overhead]
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
from live import DRAIN_S, stored
from live_parts import FeedReport, Rig, cameras, rig, whole_segments
from measure import at_most, keep, say, spread

from engine.node.submission import JobRequest, Submitted
from engine.run.profiling import Effort
from engine.simulate.capacity import IN_TIME, Load
from engine.simulate.report import quantile
from engine.spec.workflow import Stage, Workflow, load_workflow
from penstock import demo
from penstock.measuring import Fits, Measuring, fits
from streams import subjects
from streams.records import Result, decode_result

EXAMPLES = Path(__file__).parent.parent / "examples"
WARM = 8  # segments of each stream that count for nothing


class Case(msgspec.Struct, frozen=True):
    workflow: Workflow
    clip: Path
    segment_s: float
    max_lag_s: float


def cases() -> dict[str, Case]:
    every = load_workflow(EXAMPLES / "cameras.toml")
    objects = Workflow(name="objects", stages={"objects": every.stages["objects"]})
    motion = Workflow(name="motion", stages={"motion": Stage(capability="detect_motion", inputs={"media": "media"})})
    found = {
        "cameras": Case(every, demo.clip(), 2.0, 3.0),
        "objects": Case(objects, demo.clip(), 2.0, 3.0),
        "motion": Case(motion, demo.clip(), 2.0, 3.0),
    }
    pets = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")
    if pets.exists() and whole_segments(str(pets), 2.0):  # its keyframes are too far apart, as it comes
        found["pedestrians"] = Case(every, pets, 2.0, 3.0)
    return found


async def carried(case: Case, num: int, num_each: int, store: Path) -> tuple[Load, float]:
    """So many streams through the real engine; and what a segment took of the processor besides computing, s."""
    names = [f"camera-{number}" for number in range(num)]
    async with rig(store) as live:
        jobs: dict[str, Submitted] = {}
        for name in names:
            await live.declare(name, max_lag_s=case.max_lag_s, segment_s=case.segment_s)
            request = JobRequest(stream=name, workflow=case.workflow, standing=True, window_s=60.0)
            jobs[name] = await live.submit(request)
        await live.ready()
        before_s = sum(each.cpu_s for each in live.used().values())
        order = {"paced": cameras(names), "clip": str(case.clip), "segment_s": case.segment_s, "ends": True}
        order |= {"num_segments": num_each, "max_lag_s": case.max_lag_s}
        async with live.feed(**order) as feeder:
            fed = await feeder.report(FeedReport)
        await live.drained(jobs.values(), DRAIN_S + case.max_lag_s)
        used_s = sum(each.cpu_s for each in live.used().values()) - before_s + fed.cpu_s
        found = [await took_of(live, job) for job in jobs.values()]
        took = [took_s for times, _ in found for took_s in times]
        computed_s = sum(seconds for _, seconds in found)
    good = [took_s for took_s in took if took_s is not None and took_s <= case.max_lag_s]
    load = Load(
        num_streams=num,
        in_time=len(good) / max(1, len(took)),
        p50_s=quantile(good, 0.5) if good else None,
        p99_s=quantile(good, 0.99) if good else None,
        quality=1.0,
        busy={},
        by_stage={},
    )
    return load, (used_s - computed_s) / (num * num_each)


async def took_of(live: Rig, job: Submitted) -> tuple[list[float | None], float]:
    """Of each segment, from when it was stored to when the last stage's result was; None where one has a gap. And what
    was spent on computing and decoding, s."""
    computed_s = 0.0
    spec = await live.registry.job(job.job)
    fed_ns = {int(key): noted.stored_ns async for key, noted in stored(live, subjects.media_of(spec.stream))}
    done_ns: dict[int, list[int]] = {}
    for stage in spec.plan.stages:
        async for key, noted in stored(live, subjects.results_of(stage.id, spec.stream)):
            result = decode_result(noted.record.data)
            if isinstance(result, Result):
                assert result.measured is not None
                computed_s += result.measured.compute_s + result.measured.decode_s
                done_ns.setdefault(int(key), []).append(noted.stored_ns)
    num_stages = len(spec.plan.stages)
    times = [
        (max(done_ns[index]) - at_ns) / 1e9 if len(done_ns.get(index, ())) == num_stages else None
        for index, at_ns in fed_ns.items()
        if index >= WARM
    ]
    return times, computed_s


async def of_case(name: str, case: Case, seconds: float, effort: Effort) -> dict[str, Any]:
    tried: dict[int, Load] = {}

    def note(load: Load) -> None:
        tried[load.num_streams] = load

    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
        how = Measuring(like=case.clip, segment_s=case.segment_s, effort=effort, store=Path(folder) / "profiles")
        told: Fits = await fits(case.workflow, max_lag_s=case.max_lag_s, how=how, on_load=note)
        predicted = told.capacity.on_best.num_streams if told.capacity.on_best is not None else 0
        say(f"{name}: {predicted} streams predicted, {told.core_s:.3f} of a core each")
        num_each = WARM + round(seconds / case.segment_s)
        found: dict[int, Load] = {}
        for num in numbers(predicted):
            found[num], _ = await carried(case, num, num_each, Path(folder) / f"store-{num}")
            say(f"  {num}: {100 * found[num].in_time:.1f} % in time, p99 {found[num].p99_s or 0:.2f} s")
    most = max((num for num, load in found.items() if load.in_time >= IN_TIME), default=0)
    return {
        "predicted": predicted,
        "no_schedule_over": round(told.capacity.most, 2),
        "core_s_of_a_stream": round(told.core_s, 4),
        "carried": most,
        "predicted_over_carried": round(predicted / most, 3) if most else None,
        "real": [rounded(load) for load in found.values()],
        "simulated": [rounded(load) for _, load in sorted(tried.items())],
    }


def numbers(predicted: int) -> Sequence[int]:
    """What is tried: around what is predicted."""
    return sorted({max(1, round(predicted * share)) for share in (0.8, 0.9, 1.0, 1.1, 1.25)})


def rounded(load: Load) -> dict[str, Any]:
    shown = (("in_time", load.in_time), ("p50_s", load.p50_s), ("p99_s", load.p99_s))
    return {"num_streams": load.num_streams} | {key: None if value is None else round(value, 3) for key, value in shown}


async def measured(seconds: float, names: Sequence[str]) -> dict[str, Any]:
    found = {
        name: await of_case(name, case, seconds, Effort())
        for name, case in cases().items()
        if not names or name in names
    }
    off = [abs(each["predicted_over_carried"] - 1) for each in found.values() if each["predicted_over_carried"]]
    return {"cases": found, "targets": {"capacity_off_by": at_most(max(off, default=1.0), 0.1)}}


async def overhead(seconds: float) -> dict[str, Any]:
    """What the engine itself takes for a segment, where the machine has little to do."""
    found = {}
    for name, num in (("motion", 6), ("objects", 4), ("cameras", 2)):
        case = cases()[name]
        runs = []
        for number in range(3):
            with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as folder:
                num_each = WARM + round(seconds / case.segment_s)
                runs.append((await carried(case, num, num_each, Path(folder) / "store"))[1])
            say(f"{name} {number}: {1000 * runs[-1]:.1f} ms of a segment beside computing")
        plan = case.workflow.stages
        found[name] = {"num_streams": num, "num_stages": len(plan), "took_s": spread(runs)}
    return {"cases": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--case", action="append", default=[], help="only this one")
    parser.add_argument("--overhead", action="store_true", help="instead: what the engine itself takes")
    options = parser.parse_args()
    if options.overhead:
        keep("capacity_overhead", anyio.run(overhead, options.seconds))
        return
    keep("capacity", anyio.run(partial(measured, options.seconds, options.case)))


if __name__ == "__main__":
    main()
