"""What bad inputs do: 100,000 of them, of six kinds, each made from a good one by chance and thrown at the real code.

A defect is a crash, an exception of a kind that is not meant for it (a traceback in a log, too), a hang, memory that
grows by more than 1 GiB, a status that blames the node, a node that is not well afterwards, or a message that is not
one line. Each is an input that can be thrown again.

    python bench/bad_inputs.py [--seed 1] [--count 100000] [--only wire,http] [--keep DIR]
    python bench/bad_inputs.py --one http:712 [--seed 1]      # one again, or several: --one nats:700-799
    python bench/bad_inputs.py --throw wire/job FILE          # what was kept, or made smaller by hand
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bad_clips import SECOND, made
from bad_http import Http
from bad_media import Files
from bad_nats import Nats
from bad_texts import Texts
from bad_watch import Case, Kind, Note, Tally, watched
from bad_wire import Wire
from bad_words import Words
from measure import keep, say

SHARES = {"wire": 70_000, "texts": 18_500, "words": 1500, "http": 5000, "nats": 3000, "media": 2000}
WHOLE = sum(SHARES.values())
MAX_KEPT = 3  # inputs of one defect


def kinds(seed: int, clips: dict[str, bytes]) -> dict[str, Kind]:
    clip = clips[SECOND]
    every: tuple[Kind, ...] = (
        Wire(seed),
        Texts(seed),
        Words(seed),
        Http(seed, clip),
        Nats(seed, clips, clip),
        Files(seed, clips),
    )
    return {kind.name: kind for kind in every}


def distinct(notes: list[Note]) -> list[list[Note]]:
    """The defects, those that are the same together, the commonest first."""
    found: dict[tuple[str, str, str], list[Note]] = {}
    for note in notes:
        found.setdefault(_same(note), []).append(note)
    return sorted(found.values(), key=lambda notes: -len(notes))


def _same(note: Note) -> tuple[str, str, str]:
    """What two notes of one defect have in common: the place; else, of what a log has, its words; else what was thrown
    at. Numbers and what is quoted are of the input."""
    if note.where:
        return note.kind, note.where, "" if note.kind == "message" else note.what.partition(":")[0]
    logged = note.what.partition("; ")[2] or (note.what if note.target == "check" else "")
    words = re.sub(r"'[^']*'|0x[0-9a-f]+|[0-9]+", "", logged or note.what)[:45]
    return note.kind, "" if logged else note.target.partition("-")[0], words


def told(kind: Kind, notes: list[Note], seed: int, folder: Path | None) -> dict[str, Any]:
    """A defect for the report; its inputs are kept, where there is a folder for them."""
    first = notes[0]
    which = str(first.at) if first.first == first.at else f"{first.first}-{first.at}"
    again = f"--seed {seed} --one {kind.name}:{which}"
    if folder is not None:
        for note in notes[:MAX_KEPT]:
            for index in range(note.first, note.at + 1):
                case = kind.case(index)
                path = folder / f"{kind.name}-{case.target.replace('/', '_')}-{index}"
                path.write_bytes(case.data)
                if note.first == note.at == first.at:
                    again = f"--throw {kind.name}/{case.target} {path}"
    return {
        "kind": first.kind,
        "target": first.target,
        "what": first.what,
        "where": first.where,
        "num": len(notes),
        "reproduction": f"python bench/bad_inputs.py {again}",
    }


def figures(kind: Kind, num: int, tally: Tally, seconds: float, defects: list[dict[str, Any]]) -> dict[str, Any]:
    by_kind: dict[str, int] = {}
    for note in tally.notes:
        by_kind[note.kind] = by_kind.get(note.kind, 0) + 1
    return {
        "inputs": num,
        "refused": tally.refused,
        "accepted": tally.accepted,
        "defects": len(tally.notes),
        "defects_by_kind": by_kind,
        "distinct_defects": defects,
        "passed_over": tally.passed_over,
        "not_thrown": num - tally.refused - tally.accepted - sum(note.target != "check" for note in tally.notes),
        "seconds": round(seconds, 1),
        "slowest_s": round(tally.slowest_s, 3),
        "longest_message": tally.longest_message,
        "max_rss_bytes": tally.max_rss_bytes,
    }


def thrown_again(kind: Kind, cases: list[Case]) -> int:
    """Throw some in this process, with whatever they raise."""
    kind.open()
    try:
        for case in cases:
            print(f"{kind.name}/{case.target}: {kind.throw(case)}", flush=True)
        kind.check()
    finally:
        kind.close()
    return 0


def chosen(kind: Kind, which: str) -> Iterator[Case]:
    first, _, last = which.partition("-")
    for index in range(int(first), int(last or first) + 1):
        yield kind.case(index)


def throw_all(options: argparse.Namespace, every: dict[str, Kind], folder: Path) -> int:
    found: dict[str, Any] = {}
    began_s = time.monotonic()
    for name, share in SHARES.items():
        if options.only and name not in options.only.split(","):
            continue
        kind, num = every[name], max(1, round(options.count * share / WHOLE))
        say(f"{name}: {num} inputs")
        kind_began_s = time.monotonic()
        tally = watched(kind, num, folder, say)
        seconds = time.monotonic() - kind_began_s
        defects = [told(kind, notes, options.seed, options.keep) for notes in distinct(tally.notes)]
        found[name] = figures(kind, num, tally, seconds, defects)
        say(f"{name}: {tally.refused} refused, {tally.accepted} accepted, {len(tally.notes)} defects, {seconds:.0f} s")
        for defect in defects:
            say(f"  {defect['num']} x {defect['kind']} of {defect['target']}: {defect['what'][:200]} {defect['where']}")
            say(f"    {defect['reproduction']}")
    num_defects = sum(each["defects"] for each in found.values())
    keep(
        "bad_inputs",
        {
            "seed": options.seed,
            "inputs": sum(each["inputs"] for each in found.values()),
            "refused": sum(each["refused"] for each in found.values()),
            "accepted": sum(each["accepted"] for each in found.values()),
            "defects": num_defects,
            "distinct_defects": sum(len(each["distinct_defects"]) for each in found.values()),
            "seconds": round(time.monotonic() - began_s, 1),
            "max_rss_bytes": max((each["max_rss_bytes"] for each in found.values()), default=0),
            "kinds": found,
        },
    )
    return 1 if num_defects else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=WHOLE, help="inputs of all kinds together")
    parser.add_argument("--only", default="", metavar="KINDS", help=f"of these kinds only: {','.join(SHARES)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the inputs that caused a defect there")
    parser.add_argument("--one", metavar="KIND:INDEX", help="throw one again, in this process; or KIND:FIRST-LAST")
    parser.add_argument(
        "--throw", nargs=2, metavar=("KIND/TARGET", "FILE"), help="throw what a file holds, in this process"
    )
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        options.keep = options.keep.resolve()
    with tempfile.TemporaryDirectory(prefix="penstock-bad-") as folder:
        clips = Path(folder) / "clips"
        clips.mkdir()
        every = kinds(options.seed, made(clips))
        if options.one:
            name, _, which = options.one.partition(":")
            return thrown_again(every[name], list(chosen(every[name], which)))
        if options.throw:
            name, _, target = options.throw[0].partition("/")
            return thrown_again(every[name], [Case(target, Path(options.throw[1]).read_bytes())])
        os.nice(5)
        return throw_all(options, every, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
