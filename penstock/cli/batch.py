"""What people see of a run over many files: each file's answers when they are all there, then what became of all."""

from __future__ import annotations  # what is only shown need not be loaded

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from penstock.cli.show import brief, console, lines, show_answer
from streams.errors import UserError

if TYPE_CHECKING:
    from engine.spec.plan import Plan
    from engine.spec.workflow import Workflow
    from penstock.batch import Outcome
    from penstock.running import Options

NUM_SHOWN = 20  # of those that failed


async def run(
    workflow: Workflow, inputs: Sequence[str], asks: Sequence[str], options: Options, report: Path | None, as_json: bool
) -> bool:
    """Whether every file was answered."""
    from penstock.batch import files_among, run_many

    files = files_among(inputs)
    results, notes = console(), console(stderr=True)
    columns = (
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    told = _opened(report) if report is not None else None
    with Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:
        task = bar.add_task("files", total=len(files))

        def on_done(outcome: Outcome) -> None:
            if told is not None:
                told.write(msgspec.json.encode(line_of(outcome)) + b"\n")
                told.flush()
            if as_json:
                lines({"input": outcome.input, **msgspec.to_builtins(answer)} for answer in outcome.answers)
            elif outcome.answers:
                results.print(f"\n[bold cyan]{escape(outcome.input)}[/]", soft_wrap=True)
                for answer in outcome.answers:
                    show_answer(results, answer)
            bar.advance(task)

        noticed: set[str] = set()

        def on_plan(plan: Plan) -> None:
            for notice in plan.notices:
                if notice not in noticed:
                    notes.print(f"[yellow]note:[/] {escape(brief(notice))}", soft_wrap=True)
                    noticed.add(notice)

        try:
            outcomes = await run_many(workflow, files, asks, options, on_done, on_plan)
        finally:
            if told is not None:
                told.close()
    failed = [outcome for outcome in outcomes if not outcome.is_done]
    for outcome in failed[:NUM_SHOWN]:
        why = outcome.error.removeprefix(f"{outcome.input}: ")
        notes.print(f"[red]failed[/] {escape(outcome.input)}: {escape(why)}", soft_wrap=True)
    if len(failed) > NUM_SHOWN:
        notes.print(f"and {len(failed) - NUM_SHOWN} more: --report FILE tells of all")
    num_with_gaps = sum(bool(outcome.num_gaps) for outcome in outcomes)
    lacking = f", {num_with_gaps} of them without some segments" if num_with_gaps else ""
    num = f"{len(outcomes)} file{'s' * (len(outcomes) != 1)}"
    notes.print(f"{num}: {len(outcomes) - len(failed)} answered{lacking}, {len(failed)} failed")
    return not failed


def line_of(outcome: Outcome) -> dict[str, object]:
    """What a report says of a file."""
    return {
        "input": outcome.input,
        "stream": outcome.stream,
        "state": "answered" if outcome.is_done else "failed",
        "error": outcome.error,
        "answers": len(outcome.answers),
        "gaps": outcome.num_gaps,
        "took_s": outcome.took_s,
    }


def _opened(report: Path) -> IO[bytes]:
    try:
        return report.open("wb")
    except OSError as error:
        raise UserError(
            f"cannot write a report to {report}: {error.strerror}; give a file in a folder you can write"
        ) from error
