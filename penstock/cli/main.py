"""The command line: words in, exit codes out. What each command does lives elsewhere.

The result is on stdout: answers and tables for people or, with --json, one JSON object a line; progress bars, notes and
errors are on stderr. Exit codes: 0 done, 2 your input, 3 objective infeasible, 4 failed, 130 interrupted.
"""

from __future__ import annotations  # each command loads what it needs

import argparse
import os
import platform
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import anyio

from engine.run.telemetry import configure_logging, product_version
from penstock.cli import (
    annotate,
    decisions,
    live,
    mcp,
    measure,
    models,
    new,
    search,
    show,
    simulate,
    store,
    story,
    transcript,
)
from penstock.cli.terminal import harmless
from streams.errors import Infeasible, PenstockError, UserError, first_error

if TYPE_CHECKING:
    from engine.decide.answer import Answer
    from penstock.running import Options

DONE, BAD_INPUT, INFEASIBLE, FAILED, INTERRUPTED = 0, 2, 3, 4, 130

_NOT_DONE = object()
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        parsed = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
        configure_logging(getattr(parsed, "log", "error"))
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except Infeasible as error:
        return _fail(error, INFEASIBLE)
    except UserError as error:
        return _fail(error, BAD_INPUT)
    except PenstockError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--from -10m` as `--from=-10m`: a moment before now is no option, though it looks like one."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--from", "--to") and argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _fail(error: Exception, code: int) -> int:
    text = harmless(" ".join(str(error).split()))
    print(f"penstock: {text}", file=sys.stderr)
    return code


class _Version(argparse.Action):
    """Looked up only where somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"penstock {product_version()}, Python {platform.python_version()}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="penstock", description="Answers questions about video and audio.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="say which version this is")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="answer twelve questions about a clip that comes along", allow_abbrev=False)
    demo.set_defaults(command=_demo)
    _add_run_options(demo)

    running = commands.add_parser("run", help="answer questions about a file", allow_abbrev=False)
    running.add_argument("workflow", metavar="WORKFLOW", type=Path, help="a workflow file (TOML)")
    running.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="URL",
        help="a video or audio file: a path or file:// URL; several, or a folder's, if it is given so",
    )
    running.add_argument(
        "--report", type=Path, metavar="FILE", help="of several files: what became of each, as JSON lines"
    )
    running.add_argument(
        "--annotate", type=Path, metavar="FILE", help="write the video with what was found drawn into it there (MP4)"
    )
    running.add_argument("--ask", action="append", default=[], metavar="TEXT", help="a question; give it several times")
    running.set_defaults(command=_run)
    _add_run_options(running)

    listing = commands.add_parser("operators", help="list capabilities and what can do them here", allow_abbrev=False)
    listing.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    listing.set_defaults(command=_operators)

    checking = commands.add_parser("doctor", help="check what this machine has, and say what to do", allow_abbrev=False)
    checking.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    checking.add_argument("--nats", metavar="URL", help="check this NATS server instead of the embedded one")
    checking.add_argument("--store", type=Path, metavar="DIR", help="of the nodes on this machine")
    checking.set_defaults(command=_doctor)

    new.add_command(commands)
    models.add_command(commands)
    simulate.add_command(commands)
    measure.add_commands(commands, _duration_s, _until_done)
    decisions.add_commands(commands, _duration_s, _until_done)
    story.add_command(commands, _until_done)
    search.add_command(commands, _until_done)
    transcript.add_command(commands, _until_done)
    annotate.add_commands(commands, _until_done)
    store.add_command(commands, _until_done)
    mcp.add_command(commands, _until_done)
    live.add_commands(commands, _duration_s, _count, _until_done)
    return parser


def _until_done(work: Callable[[], Awaitable[Any]]) -> Any:
    return anyio.run(_interruptible, work)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="answers as one JSON object a line on stdout")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the spans there as OTLP JSON lines")
    parser.add_argument("--segment", type=_duration_s, default=5.0, metavar="5s", help="target length of a segment")
    parser.add_argument("--nats", metavar="URL", help="use this NATS server instead of an embedded one")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where the embedded server keeps its data")
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="worker processes (default 1)")
    parser.add_argument("--groups", choices=("fused", "apart"), default="fused", help="run stages fused or each alone")
    parser.add_argument("--log", choices=("debug", "info", "warning", "error"), default="error", help="what to log")


def _duration_s(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 5s, 500ms, 1m or 10h")
    return float(match[1]) * _UNIT_S[match[2]]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def _options(parsed: argparse.Namespace, store: Path | None) -> Options:
    from penstock.running import Options

    if parsed.trace is not None:
        _empty(parsed.trace)
    return Options(
        segment_s=parsed.segment,
        url=parsed.nats,
        store=store,
        trace_file=parsed.trace,
        num_workers=parsed.workers,
        groups=parsed.groups,
        log_level=parsed.log,
    )


def _empty(path: Path) -> None:
    try:
        path.write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"cannot write the trace to {path}: {error.strerror}; give a file in a folder you can write"
        ) from error


def _run(parsed: argparse.Namespace) -> int:
    from engine.spec.workflow import load_workflow
    from penstock.running import local_file, run

    workflow, options = load_workflow(parsed.workflow), _options(parsed, parsed.store)
    if len(parsed.input) > 1 or parsed.report is not None or os.path.isdir(parsed.input[0]):  # noqa: PTH112 - which has no opinion on names too long
        from penstock.cli import batch

        if parsed.annotate is not None:
            raise UserError("--annotate is of one video: run it alone, or `penstock annotate STREAM` afterwards")
        work = partial(batch.run, workflow, parsed.input, parsed.ask, options, parsed.report, parsed.json)
        return DONE if _until_done(work) else FAILED
    if parsed.annotate is not None:
        annotate.check_place(parsed.annotate, local_file(parsed.input[0]))
    answers = _answers(partial(run, workflow, parsed.input[0], parsed.ask, options), parsed.json)
    if parsed.annotate is not None:
        (job,) = {(answer.stream, answer.job) for answer in answers} or {("", "")}
        _until_done(partial(annotate.film_of_job, options.url, options.store, *job, parsed.annotate))
    return DONE


def _demo(parsed: argparse.Namespace) -> int:
    from penstock import demo
    from penstock.running import run

    asked = demo.questions()
    with show.scratch_store(parsed.store) as place:
        options = _options(parsed, place)
        work = partial(run, demo.workflow(), demo.clip(), [item.question for item in asked], options)
        answers = _answers(work, parsed.json)
        show.verdict(asked, answers, parsed.json)
        heard = _answers(partial(run, demo.hearing(), demo.recording(), [], options), parsed.json)
    show.heard(demo.reading(), heard, parsed.json)
    return DONE


def _answers(work: Callable[..., Awaitable[list[Answer]]], as_json: bool) -> list[Answer]:
    with show.Display(as_json) as display:
        shown = partial(
            work,
            on_plan=display.plan,
            on_progress=display.on_progress,
            on_answer=display.answer,
            on_saving=display.saving,
        )
        return anyio.run(_interruptible, shown)


async def _interruptible(work: Callable[[], Awaitable[Any]]) -> Any:
    """`work`, given up on SIGINT or SIGTERM: everything it opened is closed on the way out."""
    outcome: Any = _NOT_DONE
    async with anyio.create_task_group() as tasks:

        async def listen() -> None:
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()

        tasks.start_soon(listen)
        try:
            outcome = await work()
        except (PenstockError, BrokenPipeError) as error:
            outcome = error  # raised outside, so that no group is wrapped around it
        except BaseExceptionGroup as group:
            outcome = first_error(group)
        tasks.cancel_scope.cancel()
    if outcome is _NOT_DONE:
        raise KeyboardInterrupt
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _operators(parsed: argparse.Namespace) -> int:
    from penstock.cli import doctor

    rows = doctor.operators()
    if parsed.json:
        show.lines(rows)
    else:
        show.operators(rows)
    return DONE


def _doctor(parsed: argparse.Namespace) -> int:
    from penstock.cli import doctor

    findings = anyio.run(doctor.examine, parsed.nats, parsed.store)
    if parsed.json:
        show.lines(findings)
    else:
        show.findings(findings)
    return DONE if all(finding.ok or finding.optional for finding in findings) else FAILED
