"""What would have happened: a recording as a scenario, as it was or with something else. Pure.

The segments come when they came; batches take as long as those that ran, with their spread; the rules are the engine's.
A setting is `NAME=VALUE`:

| name | value |
|---|---|
| `cores` | how many there are |
| `load` | times as many streams: each so many times, of a fraction the first ones once more |
| `max_lag`, `latency` | of all streams, such as `2s`; latency `off`: as the lag allows |
| `rungs` | `best`: the best alone; `any`: as recorded |
| `passage` | `off`: every segment is begun |
| `max_batch` | of all pools |
| `faster.POOL` | how many times as fast: `POOL` is the beginning or a part of its name |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from engine.simulate.arrivals import Arrivals
from engine.simulate.modelled import ENGINE, OUTPUT_S, SEGMENT_S
from engine.simulate.report import Report
from engine.simulate.run import run
from engine.simulate.scenario import LowerSpec, Scenario, SimulatedPoolSpec, StageSpec, StreamsSpec, scenario_of
from engine.simulate.services import Service
from engine.spec.profile import fitted
from engine.spec.recording import DECODE, Outcome, RecordedPool, RecordedStream, Recording
from engine.spec.workflow import MEDIA
from streams.decoding import seconds, shown
from streams.errors import Malformed, UserError


class Replayed(NamedTuple):
    """A scenario, and whether passage is asked."""

    scenario: Scenario
    asks_passage: bool = True


def scenario_of_recording(recording: Recording) -> Scenario:
    """As it was. Raises UserError where it says nothing that could be simulated."""
    pools = {name: _pool(each) for name, each in recording.pools.items()}
    num_stages = max((len(each.stages) for each in recording.streams.values()), default=0)
    pools[ENGINE] = SimulatedPoolSpec(service=Service(base_s=SEGMENT_S + OUTPUT_S * num_stages))
    stages = {ENGINE: StageSpec(pool=ENGINE)}
    for name, stage in recording.stages.items():
        best, *lower = stage.rungs
        stages[name] = StageSpec(
            pool=best.pool,
            lower=tuple(LowerSpec(pool=rung.pool, quality=rung.quality) for rung in lower),
            inputs=tuple(ENGINE if source == MEDIA else source for source in stage.inputs),
            share=stage.share,
        )
    scenario = Scenario(
        pools=pools,
        stages=stages,
        streams=tuple(_streams(each) for each in recording.streams.values()),
        duration_s=recording.seconds + 1,
        num_cores=recording.num_cores,
        seed=1,
    )
    return _sound(scenario)


def _sound(scenario: Scenario) -> Scenario:
    """The same, held to the bounds of what can be simulated. Raises UserError."""
    return scenario_of(msgspec.to_builtins(scenario))


def _streams(recorded: RecordedStream) -> StreamsSpec:
    return StreamsSpec(
        arrivals=Arrivals(per_s=1.0, kind="times", at_s=tuple(sorted(recorded.came_s))),
        max_lag_s=recorded.max_lag_s,
        latency_s=recorded.latency_s,
        weight=recorded.weight,
        stages=(ENGINE, *recorded.stages),
    )


def _pool(recorded: RecordedPool) -> SimulatedPoolSpec:
    points = [(size, mean_s) for size, _, mean_s, _ in recorded.batches]
    base_s, per_item_s = fitted(points)
    num = sum(each[1] for each in recorded.batches)
    cv = sum(n * sd_s / mean_s for _, n, mean_s, sd_s in recorded.batches if mean_s > 0) / num if num else 0.0
    service = Service(base_s=base_s, per_item_s=per_item_s, spread="lognormal", cv=min(cv, 5.0))
    return SimulatedPoolSpec(
        service=service,
        max_batch=recorded.max_batch,
        runs_in=recorded.runs_in,
        num_instances=recorded.num_instances if recorded.device == "cuda" else 0,
        max_async=recorded.max_in_flight,
    )


# --- otherwise ---------------------------------------------------------------------------------------------------


def changed(scenario: Scenario, settings: Sequence[str]) -> Replayed:
    """With these settings. Raises UserError with the one that is wrong, and what would be right."""
    found = Replayed(scenario)
    for text in settings:
        name, sign, value = (part.strip() for part in text.partition("="))
        kind, _, about = name.partition(".")
        if not sign or kind not in _CHANGES or bool(about) != (kind == "faster"):
            raise UserError(f"--with {shown(text)}: give NAME=VALUE, of {', '.join(_CHANGES)}, such as cores=4")
        try:
            found = _CHANGES[kind](found, value, about)
            found = found._replace(scenario=_sound(found.scenario))
        except (Malformed, ValueError) as error:
            raise UserError(f"--with {shown(text)}: {error}") from error
    return found


def _cores(found: Replayed, value: str, about: str) -> Replayed:
    num = int(_number(value, 1, 4096))
    return found._replace(scenario=msgspec.structs.replace(found.scenario, num_cores=num))


def _load(found: Replayed, value: str, about: str) -> Replayed:
    times = _number(value, 0.01, 1000)
    streams = found.scenario.streams
    num = round(times * len(streams))
    if not num:
        raise UserError(f"load {value}: of {len(streams)} streams that leaves none")
    copies = [streams[number % len(streams)] for number in range(num)]
    return found._replace(scenario=msgspec.structs.replace(found.scenario, streams=tuple(copies)))


def _of_streams(found: Replayed, **changes: float) -> Replayed:
    streams = tuple(msgspec.structs.replace(each, **changes) for each in found.scenario.streams)
    return found._replace(scenario=msgspec.structs.replace(found.scenario, streams=streams))


def _max_lag(found: Replayed, value: str, about: str) -> Replayed:
    return _of_streams(found, max_lag_s=_seconds(value))


def _latency(found: Replayed, value: str, about: str) -> Replayed:
    return _of_streams(found, latency_s=0.0 if value == "off" else _seconds(value))


def _rungs(found: Replayed, value: str, about: str) -> Replayed:
    if value not in ("best", "any"):
        raise ValueError("give best or any")
    if value == "any":
        return found
    stages = {name: msgspec.structs.replace(stage, lower=()) for name, stage in found.scenario.stages.items()}
    return found._replace(scenario=msgspec.structs.replace(found.scenario, stages=stages))


def _passage(found: Replayed, value: str, about: str) -> Replayed:
    if value not in ("on", "off"):
        raise ValueError("give on or off")
    return found._replace(asks_passage=value == "on")


def _of_pools(found: Replayed, change: Callable[[str, SimulatedPoolSpec], SimulatedPoolSpec]) -> Replayed:
    pools = {name: change(name, pool) for name, pool in found.scenario.pools.items()}
    return found._replace(scenario=msgspec.structs.replace(found.scenario, pools=pools))


def _max_batch(found: Replayed, value: str, about: str) -> Replayed:
    num = int(_number(value, 1, 4096))

    def change(name: str, pool: SimulatedPoolSpec) -> SimulatedPoolSpec:
        does_one = name in (ENGINE, DECODE) or pool.runs_in == "async"
        return pool if does_one else msgspec.structs.replace(pool, max_batch=num)

    return _of_pools(found, change)


def _faster(found: Replayed, value: str, about: str) -> Replayed:
    times = _number(value, 1e-3, 1e3)
    meant = [name for name in found.scenario.pools if about in name]
    if not meant:
        raise UserError(f"no pool {about!r} was recorded; there are: {', '.join(found.scenario.pools)}")

    def change(name: str, pool: SimulatedPoolSpec) -> SimulatedPoolSpec:
        if name not in meant:
            return pool
        service = pool.service
        parts = ("base_s", "per_item_s", "per_in_flight_s", "per_in_flight2_s")
        faster = {part: getattr(service, part) / times for part in parts}
        return msgspec.structs.replace(pool, service=msgspec.structs.replace(service, **faster))

    return _of_pools(found, change)


_CHANGES: Mapping[str, Callable[[Replayed, str, str], Replayed]] = {
    "cores": _cores,
    "load": _load,
    "max_lag": _max_lag,
    "latency": _latency,
    "rungs": _rungs,
    "passage": _passage,
    "max_batch": _max_batch,
    "faster": _faster,
}


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise ValueError(f"give a number from {least:g} to {most:g}")
    return value


def _seconds(text: str) -> float:
    value = float(text.removesuffix("ms")) / 1000 if text.endswith("ms") else seconds(text)
    if not 0 < value <= 1e6:
        raise ValueError("give a time such as 2s")
    return value


def outcome(replayed: Replayed) -> Outcome:
    """What becomes of it."""
    report = run(replayed.scenario, asks_passage=replayed.asks_passage)
    return outcome_of(report, replayed.scenario.streams)


def outcome_of(report: Report, streams: Sequence[StreamsSpec]) -> Outcome:
    """In time is what was answered whole, before it was due and within the latency that its stream asks for."""
    segments = report.segments
    bounds_s = {str(number): each.latency_s or each.max_lag_s for number, each in enumerate(streams)}
    every = zip(segments.streams, segments.took_s, segments.is_in_time, segments.qualities, strict=True)
    good = [
        (took_s, quality)
        for stream, took_s, in_time, quality in every
        if in_time and took_s <= bounds_s[stream.partition("/")[0]]
    ]
    return Outcome.of(segments.num, good, len(report.changes))
