"""What people see: answers and tables on stdout, where JSON lines for machines go as well; progress bars and notes on
stderr."""

from __future__ import annotations  # what is only shown need not be loaded

import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine.spec.operator import OfRanges
from penstock.cli.terminal import SafeConsole, json_line

if TYPE_CHECKING:
    from engine.decide.answer import Answer
    from engine.node.progress import Progress as StagesDone
    from engine.node.savings import Saving
    from engine.spec.plan import Plan
    from penstock.cli.checkup import Finding
    from penstock.cli.doctor import OperatorRow
    from penstock.demo import Question, Reading

_LEADING_ZEROS = re.compile(r"^0+(?=\d)")
WIDE = 200  # columns of what nobody looks at in a terminal
ANSWERS = "answers"  # all last stages that reduce share one bar


def console(*, stderr: bool = False) -> Console:
    """Where results are written; with `stderr`, where all else is."""
    found = SafeConsole(stderr=stderr, highlight=False)
    return found if found.is_terminal else SafeConsole(stderr=stderr, highlight=False, width=WIDE)


def bars_on(to: Console) -> Progress:
    """Bars of tasks that have a `unit`, where somebody looks on."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=to,
        transient=False,
        disable=not to.is_terminal,
    )


class Display:
    """Shows a run as it happens. Use as a context manager."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = console(stderr=True)
        self._results = console()
        if self._results.is_terminal and self._console.is_terminal:
            self._results = self._console  # one terminal: answers stand above the bars, not between them
        self._bars = bars_on(self._console)
        self._tasks: dict[str, TaskID] = {}
        self._reducing: set[str] = set()
        self._has_found: bool | None = None  # None: nothing was looked at

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
        if self._has_found is False and error is None:
            self._console.print("nothing was found")

    def plan(self, plan: Plan) -> None:
        for notice in plan.notices:
            self._console.print(f"[yellow]note:[/] {escape(brief(notice))}", soft_wrap=True)
        self._reducing = {stage.name for stage in plan.stages if isinstance(stage.scope, OfRanges)}
        for stage in plan.stages:
            if stage.name not in self._reducing:
                self._tasks[stage.name] = self._bars.add_task(stage.name, total=None, unit="segments")
        if self._reducing:
            self._tasks[ANSWERS] = self._bars.add_task(ANSWERS, total=len(self._reducing), unit="")

    @property
    def on_progress(self) -> Callable[[StagesDone], None] | None:
        """What shows progress; None where there is nobody to see it, and nothing need be counted."""
        return self._progress if self._console.is_terminal else None

    def _progress(self, progress: StagesDone) -> None:
        for name, stored in progress.stored.items():
            if name not in self._reducing and name in self._tasks:
                self._bars.update(self._tasks[name], completed=stored, total=progress.total[name])
        if self._reducing:
            self._bars.update(self._tasks[ANSWERS], completed=sum(progress.stored[name] for name in self._reducing))

    def answer(self, answer: Answer) -> None:
        if self._as_json:
            lines([answer])
        else:
            self._has_found = show_answer(self._results, answer) or bool(self._has_found)

    def saving(self, saving: Saving) -> None:
        """What a gate has spared, where it has."""
        if not saving.num_held_back:
            return
        of = saving.num_computed + saving.num_held_back
        spared = f", which saved about {saving.saved_s:.1f} s" if saving.saved_s >= 0.05 else ""
        done = f"{saving.stage} was computed for {saving.num_computed} of {of} segments"
        text = escape(f"{done}: in the others {saving.why}{spared}")
        self._console.print(f"[yellow]note:[/] {text}", soft_wrap=True)


def brief(notice: str) -> str:
    """What a plan has to say, without more than one reason for a choice."""
    choice, _, reasons = notice.partition(": ")
    is_long = " runs on " in choice and "; " in reasons
    return f"{choice}; `penstock operators` says what would be better" if is_long else notice


def show_answer(to: Console, answer: Answer) -> bool:
    """An answer as people read it; whether there was anything to say."""
    if answer.question:
        _reply(to, answer)
        has_found = True
    else:
        has_found = _observations(to, answer) or bool(answer.gaps)
    for gap in answer.gaps:
        where = f"segment {gap.first}" if gap.first == gap.last else f"segments {gap.first}-{gap.last}"
        why = escape(gap.detail or gap.cause)
        to.print(f"  [yellow]without[/] {escape(gap.stage)}, {where}: {why}", soft_wrap=True)
    return has_found


def _reply(to: Console, answer: Answer) -> None:
    """A question's answer, what it rests on, and what it cost."""
    to.print()
    to.print(f"[bold]{escape(answer.question)}[/]", soft_wrap=True)
    to.print(f"  {escape(answer.answer)}  [dim](confidence {answer.confidence:.2f})[/]", soft_wrap=True)
    for item in (*answer.evidence, *answer.perhaps):
        when = f"  {item.captured_at}" if item.captured_at else ""
        span = between(item.start_s, item.end_s)
        doubt = "" if answer.evidence else "[yellow]perhaps[/] "
        to.print(f"  {doubt}{span}{escape(when)}  {escape(f'{item.kind:<6}')} {escape(item.text)}", soft_wrap=True)
    stages = ", ".join(
        f"{note.stage}: {note.implementation}{f' instead of {note.instead_of}' if note.instead_of else ''}"
        for note in answer.stages
    )
    cost = (
        f"after {answer.latency_s:.2f} s; {answer.compute_s:.2f} s of compute{_spent(answer)}; trace {answer.trace_id}"
    )
    to.print(f"  [dim]{escape(stages)}; {escape(cost)}[/]", soft_wrap=True)


def _spent(answer: Answer) -> str:
    spent = answer.spent
    if spent is None:
        return ""
    tokens = spent.input_tokens + spent.output_tokens
    said = [f"{spent.calls} call{'s' if spent.calls != 1 else ''}", f"{tokens} tokens" if tokens else ""]
    return f"; {', '.join(filter(None, said))}" + (f", price {spent.price:.6g}" if spent.price else "")


def _observations(to: Console, answer: Answer) -> bool:
    """What a stage found that answers no question: a line for each observation, none where there is none; whether
    there was any."""
    name = answer.stages[-1].stage
    found = answer.output if isinstance(answer.output, dict) else {}
    for item in found.get("observations", ()):
        span = between(item["start_ns"] / 1e9, item["end_ns"] / 1e9)
        text = " ".join(item.get("text", "").split())
        to.print(f"{span}  {name:<6} {escape(text)}", soft_wrap=True)
    if found and "observations" not in found:
        to.print(f"{name}: {escape(msgspec.json.encode(found).decode())}", soft_wrap=True)
    return bool(found.get("observations", found))


def between(start_s: float, end_s: float) -> str:
    return f"[cyan]{clock(start_s)}{f' - {clock(end_s)}' if end_s > start_s else ''}[/]"


def clock(seconds: float) -> str:
    """Media time as people write it: 1:05.2."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def lines(items: Iterable[Any]) -> None:
    """One JSON object a line on stdout."""
    for item in items:
        sys.stdout.write(json_line(item) + "\n")
    sys.stdout.flush()


def verdict(asked: Sequence[Question], answers: Sequence[Answer], as_json: bool) -> None:
    """How the demo's answers compare with the clip's ground truth. Beside JSON, a note."""
    given = {answer.question: answer.answer for answer in answers}
    right = [item for item in asked if is_right(item, given.get(item.question, ""))]
    results = console(stderr=as_json)
    results.print(f"\n{len(right)} of {len(asked)} answers are as the clip's ground truth has them.")
    for item in asked:
        if item not in right:
            results.print(f"  [yellow]not as expected:[/] {escape(item.question)}", soft_wrap=True)
    results.print()


def heard(reading: Reading, answers: Sequence[Answer], as_json: bool) -> None:
    """How what was heard compares with what was read. Beside JSON, a note."""
    from penstock.demo import num_wrong_words, words

    said = words(reading.text)
    text = " ".join(item["text"] for answer in answers for item in (answer.output or {}).get("observations", ()))
    wrong = num_wrong_words(said, words(text))
    console(stderr=as_json).print(
        f"\n{wrong} of the {len(said)} words are not as they were read: {escape(reading.source)}.", soft_wrap=True
    )


def is_right(question: Question, answer: str) -> bool:
    """Whether an answer contains one of the accepted ones; or, where the clip holds none, says so."""
    if not question.answerable:
        return answer == "not in the video"
    said = _normal(answer)
    return any(_normal(accepted) in said for accepted in question.accepted)


def _normal(text: str) -> str:
    """Words and figures between single spaces, "08:10" as "8:10"."""
    words = re.findall(r"[a-z]+|\d+(?:[:.,]\d+)*", text.lower())
    return f" {' '.join(_LEADING_ZEROS.sub('', word) for word in words)} "


@contextmanager
def scratch_store(given: Path | None) -> Iterator[Path]:
    """The store asked for, or one that is gone afterwards, so that the demo computes everything each time."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="penstock-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def operators(rows: Sequence[OperatorRow]) -> None:
    table = Table("capability", "rung", "quality", "here", box=None, pad_edge=False)
    for row in rows:
        here = "[green]yes[/]" if row.missing is None else f"[yellow]no:[/] {escape(row.missing)}"
        table.add_row(row.capability, row.rung, f"{row.quality:.2f}", here)
    console().print(table)


def findings(found: Sequence[Finding]) -> None:
    results = console()
    for finding in found:
        mark = "[green]ok  [/]" if finding.ok else "[yellow]none[/]" if finding.optional else "[red]bad [/]"
        results.print(f"{mark} {finding.what:<14} {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            results.print(f"{'':<20}{escape(finding.advice)}", soft_wrap=True)
