"""The commands about weights: which there are, whether they are what they should be, how they come here."""

import argparse
from pathlib import Path
from typing import Any

import msgspec
from rich.markup import escape
from rich.table import Table

from penstock.cli.show import console, lines
from penstock.cli.store import readable


class WeightsRow(msgspec.Struct, frozen=True):
    """Some weights, and whether they are here."""

    name: str
    capability: str
    licence: str
    origin: str
    size_bytes: int
    here: str  # "path", "packages" or "cache"; empty: they are not
    advice: str = ""  # what brings them here


def add_command(commands: Any) -> None:
    """Add it to the command line's parser."""
    help = "list the weights of models, verify them, bring them here"
    parser = commands.add_parser("models", help=help, description=help, allow_abbrev=False)
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, work: Any) -> Any:
        parser = kinds.add_parser(name, help=help, description=help, allow_abbrev=False)
        parser.set_defaults(command=work)
        parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
        return parser

    command("list", "list what there is to have", _list)
    command("verify", "look at every byte of what is here", _verify).add_argument("names", nargs="*", metavar="NAME")
    command("fetch", "bring some here", _fetch).add_argument("name", metavar="NAME")
    command("path", "say in which folder some are", _path).add_argument("name", metavar="NAME")


def rows() -> list[WeightsRow]:
    from operators import weights

    found = []
    for each in weights.manifest().values():
        place = weights.find(each.name)
        found.append(
            WeightsRow(
                name=each.name,
                capability=each.capability,
                licence=each.licence,
                origin=each.origin,
                size_bytes=each.size_bytes,
                here=place.where if place is not None else "",
                advice="" if place is not None else each.advice,
            )
        )
    return found


def _list(parsed: argparse.Namespace) -> int:
    found = rows()
    if parsed.json:
        lines(found)
        return 0
    table = Table("weights", "for", "licence", "size", "here", "what it is", box=None, pad_edge=False)
    for row in found:
        here = escape(row.here or row.advice)
        table.add_row(row.name, row.capability, row.licence, readable(row.size_bytes), here, escape(row.origin))
    console().print(table)
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from operators import weights

    names = parsed.names or [row.name for row in rows() if row.here]
    for name in names:
        found = weights.verify(name)
        _say(parsed.json, {"name": name, "here": found.where}, f"{name} is what it should be ({found.where})")
    if not names:
        console(stderr=True).print("none of the weights are here: penstock models list")
    return 0


def _fetch(parsed: argparse.Namespace) -> int:
    from operators import weights

    found = weights.fetch(parsed.name)
    _say(parsed.json, {"name": parsed.name, "here": found.where}, f"{parsed.name} is here ({found.where})")
    return 0


def _path(parsed: argparse.Namespace) -> int:
    from operators import weights

    folder: Path = weights.folder_of(parsed.name)
    _say(parsed.json, {"name": parsed.name, "path": str(folder)}, str(folder))
    return 0


def _say(as_json: bool, values: dict[str, str], text: str) -> None:
    if as_json:
        lines([values])
    else:
        console().print(escape(text), soft_wrap=True)
