"""Peak memory of the demo's job, and of the same job on a file many times as long.

The sum over all processes of a job (the command, workers, their children, the keeper, nats-server) is of PSS, which
counts a page shared by k processes 1/k in each: Linux's smaps_rollup, every 50 ms. A process's own peak is the kernel's
(VmHWM). What belongs to a job is known by a variable in its environment, so no daemon escapes.

The long file is the clip's packets again and again, with later timestamps. The peer is the script that holds what it
decodes (`bench/sequential.py --media whole`), on the clip itself only; the limit is that memory does not grow with
the length of the input.

Source: Linux, Documentation/filesystems/proc.rst, "smaps_rollup" and "status".
"""

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import msgspec
from measure import MAX_RUN_S, ROOT, at_most, keep, say

from engine.decide.answer import Answer
from penstock.cli.show import is_right
from penstock.demo import Question, clip, questions

EVERY_S = 0.05
MARK = "PENSTOCK_BENCH_RUN"
WORKFLOW = ROOT / "examples" / "video_qa.toml"
SCRIPT = ROOT / "bench" / "sequential.py"
ROLES = {  # a word of the command line -> what the process is
    "engine.run.process": "worker",
    "streams.wire.keeper": "keeper",
    "nats-server": "nats-server",
    "anyio.to_process": "child of a worker",
    "sequential.py": "script",
}


class Peak(msgspec.Struct):
    """What a run of a command came to."""

    peak_pss_bytes: int = 0
    peak_parts_bytes: dict[str, int] = {}  # PSS by process, when the sum was highest
    peak_rss_bytes: dict[str, int] = {}  # each process's own peak
    wall_s: float = 0.0
    num_samples: int = 0


class Watch:
    """Reads what the processes of one run use."""

    def __init__(self, mark: str) -> None:
        self.peak = Peak()
        self._mark = f"{MARK}={mark}".encode()
        self._others = processes()
        self._names: dict[int, str] = {}

    def sample(self) -> None:
        parts: dict[str, int] = {}
        for pid in processes() - self._others:
            try:
                if self._mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    continue
                name = self._name(pid)
                rollup, status = (fields(f"/proc/{pid}/{file}") for file in ("smaps_rollup", "status"))
            except OSError:  # it has just gone
                continue
            parts[name] = rollup.get("Pss", 0)
            self.peak.peak_rss_bytes[name] = max(self.peak.peak_rss_bytes.get(name, 0), status.get("VmHWM", 0))
        self.peak.num_samples += 1
        if sum(parts.values()) > self.peak.peak_pss_bytes:
            self.peak.peak_pss_bytes, self.peak.peak_parts_bytes = sum(parts.values()), parts

    def _name(self, pid: int) -> str:
        """Its role, numbered where several have it; looked up until it has become what it will be."""
        role = role_of(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
        if self._names.get(pid, "").partition(" #")[0] != role:
            number = 1 + sum(name.partition(" #")[0] == role for name in self._names.values())
            self._names[pid] = role if number == 1 else f"{role} #{number}"
        return self._names[pid]


def role_of(command_line: str) -> str:
    return next((role for word, role in ROLES.items() if word in command_line), "command")


def processes() -> set[int]:
    return {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()}


def fields(file: str) -> dict[str, int]:
    """The sizes in a file of "Name: value kB" lines, bytes."""
    found: dict[str, int] = {}
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = 1024 * int(value.removesuffix(" kB"))
    return found


def watched(command: Sequence[str]) -> tuple[Peak, bytes]:
    """Run a command to its end; its peak and its stdout.

    Raises CalledProcessError where it fails, TimeoutExpired where it hangs."""
    watch = Watch(mark := secrets.token_hex(8))
    started_s = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, cwd=ROOT, env={**os.environ, MARK: mark})
        while process.poll() is None:
            began_s = time.perf_counter()
            if began_s - started_s > MAX_RUN_S:
                process.terminate()
                raise subprocess.TimeoutExpired(command, MAX_RUN_S)
            watch.sample()
            time.sleep(max(0.0, EVERY_S - (time.perf_counter() - began_s)))
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        watch.peak.wall_s = round(time.perf_counter() - started_s, 3)
        output.seek(0)
        return watch.peak, output.read()


def job(path: Path, asked: Sequence[Question]) -> tuple[Peak, int, int]:
    """The engine on a file over an empty store: its peak, how many answers are right and how many gaps they name."""
    asks = [part for item in asked for part in ("--ask", item.question)]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", ignore_cleanup_errors=True) as store:
        run = [sys.executable, "-m", "penstock", "run", str(WORKFLOW), "--input", str(path)]
        peak, output = watched([*run, "--json", "--store", store, *asks])
    answers = [msgspec.json.decode(line, type=Answer) for line in output.splitlines()]
    said = {answer.question: answer.answer for answer in answers}
    num_right = sum(is_right(item, said.get(item.question, "")) for item in asked)
    return peak, num_right, sum(len(answer.gaps) for answer in answers)


def repeated(path: Path, times: int, target: Path) -> None:
    """Write the packets of a file `times` times in a row."""
    length_s = span_s(path)
    with av.open(str(target), "w") as out:
        copies: dict[int, Any] = {}
        for number in range(times):
            with av.open(str(path)) as source:
                for stream in source.streams:
                    if number == 0 and stream.type in ("video", "audio"):
                        copies[stream.index] = out.add_stream_from_template(stream)
                for packet in source.demux():
                    if packet.dts is None or packet.pts is None or packet.stream_index not in copies:
                        continue
                    shift = round(number * length_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = copies[packet.stream_index]
                    out.mux_one(packet)


def span_s(path: Path) -> Fraction:
    """What the longest track of a file takes, its packets' preroll included."""
    begins: dict[int, Fraction] = {}
    ends: dict[int, Fraction] = {}
    with av.open(str(path)) as source:
        for packet in source.demux():
            if packet.dts is not None:
                begins.setdefault(packet.stream_index, packet.dts * packet.time_base)
                ends[packet.stream_index] = (packet.dts + (packet.duration or 0)) * packet.time_base
    return max(end - begins[index] for index, end in ends.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how many times as long the long file is")
    times = parser.parse_args().times
    asked = questions()
    say("the demo's job")
    short, num_right, num_gaps = job(clip(), asked)
    say(f"  {short.peak_pss_bytes / 1e6:.0f} MB at {short.wall_s:.0f} s of wall time; the script that holds everything")
    peer, _ = watched([sys.executable, str(SCRIPT), "--input", str(clip()), "--media", "whole"])
    say(f"  {peer.peak_pss_bytes / 1e6:.0f} MB; the demo's job on a file {times} times as long")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        long_file = Path(folder, "long.mp4")
        repeated(clip(), times, long_file)
        with av.open(str(long_file)) as container:
            long_s = (container.duration or 0) / 1e6
        long, num_right_long, num_gaps_long = job(long_file, asked)
    say(f"  {long.peak_pss_bytes / 1e6:.0f} MB, {long.wall_s:.0f} s")
    correct = num_gaps == num_gaps_long == 0 and num_right_long == num_right
    keep(
        "memory",
        {
            "correct": correct,
            "right": {"clip": num_right, "long": num_right_long, "of": len(asked)},
            "gaps": {"clip": num_gaps, "long": num_gaps_long},
            "targets": {"long_over_clip": at_most(long.peak_pss_bytes / short.peak_pss_bytes, 1.2)},
            "times": times,
            "long_duration_s": round(long_s, 3),
            "clip": short,
            "long": long,
            "script_holding_everything_on_the_clip": peer,
        },
    )
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
