"""What is told of a segment: in order, with what was computed beside it, and why there is a gap."""

import msgspec
import toys

from engine.decide.story import Kept, Line, Remembered, lines_of
from streams.records import DeadLetter, Gap, Measured, Result, encode

NAMES = {"a": "read", "b": "add"}
S = 10**9


def result(stage: str, index: int, started_s: float, batch: int = 0, size: int = 1, attempt: int = 1) -> Result:
    measured = Measured(
        compute_s=0.5,
        wait_s=0.25,
        batch_size=size,
        worker="w",
        batch=batch,
        attempt=attempt,
        started_ns=int(started_s * S),
    )
    output = msgspec.Raw(encode(toys.Number(value=1)))
    return Result(
        stage=stage, stream="s", first=index, last=index, output=output, implementation="toy", measured=measured
    )


def told(lines: list[Line]) -> list[tuple[float, str, str, str]]:
    return [(line.at_ns / S, line.segment, line.stage, line.what) for line in lines]


def test_it_is_told_in_the_order_in_which_it_happened() -> None:
    kept = [
        Kept(result("b", 0, 3.0), 4 * S, 3),
        Kept(result("a", 0, 2.0), int(2.5 * S), 2),
        Kept(toys.toy_segment("s", 0, 5), S, 1, 1200, due_ns=11 * S),
    ]
    lines = lines_of(kept, NAMES)
    assert told(lines) == [
        (1.0, "0", "", "arrived"),
        (1.75, "0", "read", "ready"),
        (2.0, "0", "read", "computed"),
        (2.5, "0", "read", "stored"),
        (2.75, "0", "add", "ready"),
        (3.0, "0", "add", "computed"),
        (4.0, "0", "add", "stored"),
    ]
    assert "due 10.00 s later" in lines[0].why
    assert lines[2].why == "after 0.250 s of waiting, in a batch of 1, 0.500 s of its own, by toy"


def test_what_was_computed_in_the_same_batch_is_named() -> None:
    kept = [Kept(result("a", n, 2.0, batch=7, size=3), 3 * S, n) for n in (0, 1)]
    kept.append(Kept(result("b", 9, 2.0, batch=7, size=3), 3 * S, 9))
    kept.append(Kept(result("a", 5, 9.0, batch=7, size=1), 9 * S, 5))  # of a worker of that name that lived later
    (computed,) = [line for line in lines_of(kept, NAMES) if line.what == "computed" and line.segment == "0"]
    assert "batch 7 of 3 with add 9, read 1," in computed.why


def test_a_gap_a_dead_letter_and_a_reason_say_why() -> None:
    kept = [
        Kept(DeadLetter(stage="a", stream="s", first=3, last=3, cause="unlucky", attempts=4), S, 1),
        Kept(Gap(stage="a", stream="s", first=3, last=3, cause="dead_lettered", detail="unlucky"), 2 * S, 2),
    ]
    remembered = [Remembered(at_ns=S // 2, stream="s", segment="3", stage="read", what="compute", why="all is stored")]
    lines = lines_of(kept, NAMES, remembered)
    assert [(line.what, line.why) for line in lines] == [
        ("told: compute", "all is stored"),
        ("given up", "unlucky; delivered 4 times"),
        ("gap: dead_lettered", "unlucky"),
    ]


def test_one_stage_alone_keeps_what_is_about_the_segment() -> None:
    kept = [
        Kept(toys.toy_segment("s", 0, 5), S, 1),
        Kept(result("a", 0, 2.0), 3 * S, 2),
        Kept(result("b", 0, 4.0, attempt=2), 5 * S, 3),
    ]
    lines = lines_of(kept, NAMES, stage="add")
    assert {line.stage for line in lines} == {"", "add"}
    assert any("delivery 2" in line.why for line in lines)
