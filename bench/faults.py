"""What two hundred faults do to a set-up of three NATS servers and two nodes, each on a host of its own.

A stream of short segments goes on while, one after the other, a server is killed, frozen, cut off or out of disk, a
node is killed, frozen or cut off, a worker is killed, a node's clock jumps, or all results are purged; jobs are
submitted all the time. The peer is the same stream in a run in which nothing happens: the ledger has to be equal, and
no answer may be lost or come twice. The limit is a submit that is answered within 5 s while a server is killed.

    faults.py [--count 200] [--seed 1] [--kinds "server killed" ...] [--every SECONDS]

Needs root: namespaces for hosts, small disks for servers; the clock jumps by libfaketime, if it is installed.
"""

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
from measure import ROOT, at_most, keep, say

sys.path.insert(0, str(ROOT / "tests"))
faults: Any = import_module("faults")
hosts: Any = import_module("hosts")
SUBMIT_LIMIT_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=sorted(faults.KINDS), help="only these")
    parser.add_argument("--every", type=float, default=0.0, help="seconds from one to the next, at least")
    asked = parser.parse_args()
    if why := hosts.why_none() or faults.why_not():
        say(f"cannot be run here: {why}")
        return 2
    if asked.kinds:
        for kind in set(faults.KINDS) - set(asked.kinds):
            del faults.KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        outcome = anyio.run(faults.run_faults, Path(folder), asked.seed, asked.count, say, asked.every)
    name = "faults" if not asked.kinds else f"faults_{'_'.join(asked.kinds[0].split())}"
    keep(
        name,
        {
            "seed": asked.seed,
            "every_s": asked.every,
            "num_faults": outcome.num_faults,
            "kinds": outcome.kinds,
            "num_segments": outcome.num_segments,
            "num_jobs": outcome.num_jobs,
            "num_answers": outcome.num_answers,
            "num_lost": outcome.num_lost,
            "num_twice": outcome.num_twice,
            "num_records_different": outcome.num_different,
            "num_jobs_refused": outcome.num_refused,
            "wrong": outcome.wrong,
            "longest_pause_s": {kind: round(pause_s, 2) for kind, pause_s in sorted(outcome.pause_s.items())},
            "submit_p50_s": round(outcome.submit_median_s, 3),
            "submit_p95_s": round(outcome.submit_quantile_s(0.95), 3),
            "submit_max_s": at_most(max(outcome.submit_s), SUBMIT_LIMIT_S),
            "longest_submit_s": {kind: round(s, 2) for kind, s in sorted(outcome.submits_s.items())},
        },
    )
    return int(bool(outcome.wrong or outcome.num_different or outcome.num_refused))


if __name__ == "__main__":
    sys.exit(main())
