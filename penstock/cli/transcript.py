"""The command that writes what was heard: as text, subtitles or JSON."""

from __future__ import annotations  # what reads the ledger is loaded when it is asked for

import argparse
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from rich.markup import escape

from penstock.cli.links import add_options, linked
from penstock.cli.show import console
from penstock.cli.terminal import harmless, json_line
from penstock.places import default_store
from streams.errors import UserError

if TYPE_CHECKING:
    from operators.heard import Speech

Run = Callable[[Callable[[], Awaitable[Any]]], Any]
FORMATS = ("txt", "srt", "vtt", "json")
_NO_NAME = re.compile(r"[^\w.,()+ -]|^\.+")


def add_command(commands: Any, run: Run) -> None:
    """Add it to the command line's parser."""
    help = "write what was heard in streams: text, subtitles or JSON lines"
    parser = commands.add_parser("transcript", help=help, description=help, allow_abbrev=False)
    parser.add_argument("stream", nargs="*", metavar="STREAM", help="a stream's name or its file's; none: all")
    parser.add_argument("--format", choices=FORMATS, default="txt", help="default: txt, a line for each utterance")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a file for each stream there, not stdout")
    add_options(parser)

    def call(parsed: argparse.Namespace) -> int:
        run(partial(_transcripts, parsed))
        return 0

    parser.set_defaults(command=call)


async def _transcripts(parsed: argparse.Namespace) -> None:
    from engine.run.registry import open_registry
    from penstock.transcripts import heard_in, streams_heard
    from streams.wire.ledger import open_ledger

    async with linked(parsed.nats, parsed.store or default_store(), "penstock-transcript") as link:
        ledger, registry = await open_ledger(link), await open_registry(link)
        titles = {name: spec.title or name for name, spec in (await registry.streams()).items()}
        stages = await streams_heard(registry)
        heard = {name: titles.get(name, name) for name in stages}
        streams = _meant(parsed.stream, heard)
        if parsed.out is None and len(streams) > 1 and parsed.format != "json":
            raise UserError(f"{len(streams)} streams are one file too many: give --out DIR, or name one")
        names = _names(streams, heard, parsed.format)
        for stream in streams:
            text = written(await heard_in(ledger, stages[stream], stream), parsed.format, stream, heard[stream])
            if parsed.out is None:
                sys.stdout.write(text)
            else:
                await _write(parsed.out / names[stream], text)
    if parsed.out is not None:
        num = f"{len(streams)} file{'s' * (len(streams) != 1)}"
        console(stderr=True).print(f"{num} in {escape(str(parsed.out))}", soft_wrap=True)


def written(said: Sequence[Speech], form: str, stream: str, title: str) -> str:
    """What was heard, in one of FORMATS."""
    from operators.speech.subtitles import cues_of, srt, vtt

    match form:
        case "srt":
            return srt(cues_of(said))
        case "vtt":
            return vtt(cues_of(said))
        case "json":
            lines = (
                {
                    "stream": stream,
                    "title": title,
                    "start_s": each.start_ns / 1e9,
                    "end_s": each.end_ns / 1e9,
                    "text": each.text,
                    "confidence": each.confidence,
                }
                for each in said
            )
            return "".join(json_line(line) + "\n" for line in lines)
    return "".join(f"{harmless(text)}\n" for each in said if (text := " ".join(each.text.split())))


def _meant(asked: Sequence[str], heard: Mapping[str, str]) -> list[str]:
    """Streams by their names or their files'."""
    if not asked:
        if not heard:
            raise UserError("nothing was heard yet: `penstock run` or a job that transcribes comes first")
        return sorted(heard, key=lambda stream: (heard[stream], stream))
    found: dict[str, None] = {}
    for name in asked:
        by_name = [stream for stream in sorted(heard) if name in (stream, heard[stream])]
        if not by_name:
            known = ", ".join(sorted(heard.values())[:8]) or "none"
            raise UserError(f"nothing was heard in a stream {name!r}: there are {known}")
        found |= dict.fromkeys(by_name)
    return list(found)


def _names(streams: Sequence[str], heard: Mapping[str, str], form: str) -> dict[str, str]:
    """A file's name for each, each another."""
    names: dict[str, str] = {}
    for stream in streams:
        stem = _NO_NAME.sub("-", Path(heard[stream]).stem)[:150].strip("- ") or stream
        if f"{stem}.{form}" in names.values():
            stem = f"{stem}-{stream[:40]}"
        names[stream] = f"{stem}.{form}"
    return names


async def _write(path: Path, text: str) -> None:
    try:
        await anyio.Path(path.parent).mkdir(parents=True, exist_ok=True)
        await anyio.Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give a folder you can write") from error
