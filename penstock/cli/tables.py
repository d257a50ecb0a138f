"""What people see of a running service: what was submitted, tables of jobs, streams and nodes, how pushing goes."""

from __future__ import annotations  # what is only shown need not be loaded

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from penstock.cli.show import brief, clock, console, lines, show_answer
from streams.records import EndOfStream, Gap, Segment

if TYPE_CHECKING:
    from engine.decide.answer import Answer
    from engine.decide.redundancy.findings import Redundancy
    from engine.decide.watching import SourceState
    from engine.node.submission import Submitted
    from engine.node.views import JobView, StreamView
    from engine.run.registry import NodeStatus

_results, _notes = console(), console(stderr=True)


@dataclass(frozen=True, slots=True)
class Running:
    """A node that is up."""

    id: str
    nats: str
    http: str | None
    store: Path | None


def say(text: str) -> None:
    _notes.print(escape(text), soft_wrap=True)


def _tell(text: str) -> None:
    _results.print(escape(text), soft_wrap=True)


def ready(running: Running) -> None:
    """Where a node that has come up is to be found."""
    say(f"node {running.id} is up")
    from streams.wire.link import without_credentials

    where = without_credentials(running.nats)
    say(f"  NATS  {where}" + (f"  (with its token: {running.store}/server.json)" if running.store else ""))
    if running.http:
        say(f"  HTTP  {running.http}")
    say("  Ctrl-C ends it")


def answer(found: Answer, as_json: bool) -> None:
    if as_json:
        lines([found])
    else:
        show_answer(_results, found)


def submitted(job: Submitted, as_json: bool) -> None:
    """What became of a job: what it shares with others and what is new."""
    if as_json:
        lines([job])
        return
    for notice in job.notices:
        _notes.print(f"[yellow]note:[/] {escape(brief(notice))}", soft_wrap=True)
    last = "" if job.last is None else str(job.last)
    say(f"job {job.job} on {job.stream}, segments {job.first}-{last}" + (", standing" if job.standing else ""))
    say(f"  shared  {', '.join(job.shared) or 'nothing'}")
    say(f"  new     {', '.join(job.new) or 'nothing'}")


def jobs(found: Sequence[JobView], as_json: bool) -> None:
    if as_json:
        lines(found)
        return
    table = Table("job", "stream", "state", "segments", "asks", "submitted", box=None, pad_edge=False)
    for item in found:
        last = "" if item.last is None else item.last
        more = f" and {len(item.asks) - 1} more" if len(item.asks) > 1 else ""
        asks = item.asks[0] + more if item.asks else item.detail
        kind = f"{item.state}, standing" if item.standing else item.state
        table.add_row(item.job, item.stream, kind, f"{item.first}-{last}", escape(asks), item.submitted_at)
    _results.print(table if found else "no jobs")


def job(found: JobView, as_json: bool) -> None:
    if as_json:
        lines([found])
        return
    last = "" if found.last is None else found.last
    kind = ", standing" if found.standing else ""
    _tell(f"job {found.job}: {found.state}{kind}; {found.workflow} on {found.stream}, segments {found.first}-{last}")
    if found.detail:
        _tell(f"  {found.detail}")
    for ask in found.asks:
        _tell(f"  asks {ask}")
    if found.latency_s:
        _tell(f"  answers are wanted within {found.latency_s:g} s")
    for stage in found.stages:
        lower = f", under load by {', '.join(stage.lower)}" if stage.lower else ""
        _tell(f"  {stage.name}: {stage.capability} by {stage.implementation}{lower} ({stage.id})")


def streams(found: Sequence[StreamView], as_json: bool) -> None:
    if as_json:
        lines(found)
        return
    table = Table(
        "stream", "policy", "state", "segments", "reaches", "gaps", "jobs", "source", box=None, pad_edge=False
    )
    for item in found:
        segments = "none" if item.first is None else f"{item.first}-{item.last}"
        gaps = ", ".join(f"{num} {cause}" for cause, num in sorted(item.gaps.items())) or "none"
        state = f"{item.state} since {item.since[:19]}Z" if item.state in ("silent", "gone") else item.state
        row = (item.stream, item.policy, state, segments, clock(item.end_s), gaps, str(item.num_jobs))
        table.add_row(*row, escape("; ".join(filter(None, (item.source or item.title, item.error, item.detail)))))
    _results.print(table if found else "no streams")


def nodes(found: Sequence[NodeStatus], as_json: bool) -> None:
    if as_json:
        lines(found)
        return
    table = Table("node", "host", "pid", "cores", "GPU", "workers", "HTTP", "models", box=None, pad_edge=False)
    for item in found:
        gpu = "yes" if item.has_gpu else "no"
        models = escape(", ".join(f"{model} {state}" for model, state in item.models.items()))
        is_fixed = item.min_workers == item.max_workers
        workers = f"{item.num_workers}" if is_fixed else f"{item.num_workers} of {item.min_workers}-{item.max_workers}"
        numbers = str(item.pid), str(item.num_cores), gpu, workers
        table.add_row(item.id, item.host, *numbers, item.http, models)
    _results.print(table if found else "no nodes")


def redundancy(found: Sequence[Redundancy], as_json: bool) -> None:
    if as_json:
        lines(found)
        return
    for item in found:
        saved = f"saves {item.saves_compute_s_per_s:.3f} s of compute for each second of media"
        _results.print(f"[bold]{item.kind}[/] {saved if item.is_measured else 'saves what is not measured yet'}")
        _tell(f"  {item.why}")
    if not found:
        _tell("nothing is computed twice")


class Pushing:
    """How pushing goes, as it goes. Use as a context manager."""

    def __init__(self, stream: str, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._num_segments = 0
        self._bar = Progress(
            TextColumn("{task.description}"), TimeElapsedColumn(), console=_notes, disable=not _notes.is_terminal
        )
        self._task = self._bar.add_task(f"{stream}: connecting", total=None)

    def __enter__(self) -> Pushing:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, record: Segment | Gap) -> None:
        if isinstance(record, Gap):
            self._say({"stream": self._stream, "segment": record.first, "gap": record.detail})
            return
        self._num_segments += 1
        end_s = (record.start_ns + record.duration_ns) / 1e9
        self._bar.update(self._task, description=f"{self._stream}: {self._num_segments} segments, {clock(end_s)}")
        if self._as_json:
            lines([{"stream": self._stream, "segment": record.index, "end_s": round(end_s, 3)}])
        for flaw in record.flaws:
            self._say({"stream": self._stream, "segment": record.index, "flaw": flaw})

    def state(self, state: SourceState) -> None:
        """What the source is doing, where that is worth a word."""
        if state.error or state.state in ("silent", "gone"):
            error: dict[str, object] = {"error": state.error} if state.error else {}
            self._say({"stream": self._stream, "source": state.state, **error})
        self._bar.update(self._task, description=f"{self._stream}: {state.state}")

    def end(self, end: EndOfStream | None) -> None:
        if end is None:
            self._say({"stream": self._stream, "stopped": True})
        else:
            self._say({"stream": self._stream, "num_segments": end.num_segments, "ended": True})

    def _say(self, what: dict[str, object]) -> None:
        if self._as_json:
            lines([what])
        else:
            _notes.print(escape(", ".join(f"{key} {value}" for key, value in what.items())), soft_wrap=True)
