"""What deciding costs: events a second through the rule of a group and the batcher, in pure Python, on one core.

The limit is an empty loop that calls two Python functions for each event; no other project's decisions can be had apart
from its I/O, so there is no peer.

    python bench/decisions.py [--events 200000] [--rounds 5]
"""

import argparse
import statistics
import time
from typing import Any

from measure import at_least, keep, say, spread

from engine.decide.batcher import Batcher, Item, Run
from engine.decide.instructions import Acknowledge, Compute, Event, Found, Known, Read, StageRule
from engine.decide.readiness import Readiness
from engine.decide.retry import RetryPolicy
from engine.decide.running_graph import RunningStage
from engine.spec.jobs import Span
from engine.spec.operator import Map, Scope, Window
from engine.spec.plan import PlannedRung, PlannedStage
from engine.spec.workflow import MEDIA
from streams.subjects import Key

RUNG = PlannedRung(implementation="i", rung="r", version=1)
BATCH = 16


def rule_for(scope: Scope, sources: tuple[str, ...] = (MEDIA,)) -> Readiness:
    planned = PlannedStage(id="s", name="s", capability="c", rung=RUNG, scope=scope, group="g", inputs={"in": sources})
    stage = RunningStage(planned=planned, spans=(Span(first=0),), patient=(Span(first=0),))
    return Readiness([StageRule(stage, frozenset([MEDIA]), False)], RetryPolicy())


def drive(rule: Readiness, num: int, window: int) -> float:
    """Seconds for `num` segments: each arrives, is read where it must be, waits for its batch, is stored, is done with.
    An event is whatever the rule or the batcher is told."""
    batcher = Batcher(BATCH)
    inputs: dict[int, Known] = {}
    waiting: dict[int, Compute] = {}
    num_done = 0
    began_s = time.perf_counter()
    for index in range(num):
        known = Known(index + 1, value=index)
        inputs[index] = known
        inputs.pop(index - window - 1, None)
        todo = rule.arrived(Event(MEDIA, Key(index, index), known, index), 0)
        while todo:
            told = todo.pop()
            match told:
                case Compute():
                    waiting[index] = told
                    batcher.add(Item(index))
                case Read():
                    there = {at: inputs[at] for at in told.wants[MEDIA] if at in inputs}
                    todo += rule.found(told, Found(inputs={MEDIA: there}), 0)
        for decision in batcher.decide(0, 1 if index % BATCH == BATCH - 1 else 0):
            if isinstance(decision, Run):
                for item in decision.items:
                    for told in rule.placed(waiting.pop(item.id), known, 0):
                        num_done += isinstance(told, Acknowledge)
    taken_s = time.perf_counter() - began_s
    assert num_done >= num - BATCH, "a message was not done with"
    return taken_s


def empty(num: int) -> float:
    """Seconds for a loop that calls two functions and makes two values for each segment."""

    def one(event: Event) -> list[Event]:
        return [event]

    began_s = time.perf_counter()
    for index in range(num):
        for event in one(Event(MEDIA, Key(index, index), Known(index), index)):
            one(event)
    return time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=200_000, help="segments a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    num = options.events
    rates: dict[str, list[float]] = {"map": [], "window_of_8": [], "empty_loop": []}
    for number in range(options.rounds):
        # a segment is told three times: it arrived, it waits for its batch, it is stored; a window is read as well
        rates["map"].append(3 * num / drive(rule_for(Map()), num, 0))
        rates["window_of_8"].append(5 * num / drive(rule_for(Window(8)), num, 8))
        rates["empty_loop"].append(num / empty(num))
        say(f"round {number}: " + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()))
    figures: dict[str, Any] = {f"{name}_events_per_s": spread(values) for name, values in rates.items()}
    share = statistics.median(m / 3 / e for m, e in zip(rates["map"], rates["empty_loop"], strict=True))
    keep(
        "decisions",
        {
            "events": num,
            "rounds": options.rounds,
            **figures,
            "segments_vs_empty_loop": round(share, 4),
            "targets": {"map_events_per_s": at_least(statistics.median(rates["map"]), 100_000)},
        },
    )


if __name__ == "__main__":
    main()
