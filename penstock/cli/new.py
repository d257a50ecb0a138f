"""`penstock new operator NAME`: a package of its own with a small real operator, its test and a workflow.

The files are in penstock.cli.templates. Nothing is overwritten, and nothing is left behind where one cannot be written.
"""

import argparse
import importlib.util
import io
import keyword
import re
import shutil
import sys
import tokenize
from pathlib import Path
from typing import Any

from engine.spec.operator import Capability
from operators import capabilities
from penstock.cli.templates import OPERATOR
from streams.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
MAX_NAME = 40


def add_command(commands: Any) -> None:
    """Add it to the command line's parser."""
    making = commands.add_parser("new", help="write a new operator, as a package of its own", allow_abbrev=False)
    kinds = making.add_subparsers(title="what", metavar="WHAT", required=True)
    operator = kinds.add_parser("operator", help="a package with an operator and its test", allow_abbrev=False)
    operator.add_argument("name", metavar="NAME", help="of the package and the capability, such as loudness")
    operator.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="where its folder goes (default: .)")
    operator.set_defaults(command=_new_operator)


def _new_operator(parsed: argparse.Namespace) -> int:
    folder = new_operator(parsed.name, parsed.dir)
    print(f"{folder} is written; now: cd {folder} && python -m pytest", file=sys.stderr)
    return 0


def new_operator(name: str, parent: Path) -> Path:
    """Write the package into a new folder of `parent`; the folder. Raises UserError where the name or the place will
    not do."""
    values = _checked(name)
    folder = parent / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"there is already {folder}; choose another NAME or --dir, nothing was written") from None
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; give a --dir that you can write to") from error
    try:
        for template, content in OPERATOR.items():
            path = folder / _filled(template, values)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(content, values), encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot write to {folder}: {error.strerror}; give a --dir that you can write to") from error
    return folder


def _filled(template: str, values: dict[str, str]) -> str:
    return re.sub(r"@(\w+?)@", lambda found: values[found[1]], template)


def _checked(name: str) -> dict[str, str]:
    """What the name is in the templates. Raises UserError for one that cannot be a package's, a module's, a class's and
    a capability's."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        right = f"use up to {MAX_NAME} of a-z and 0-9, words joined by - or _, such as loudness or count-people"
        raise UserError(f"{name!r} cannot be the name of an operator: {right}")
    words = re.split("[-_]", name)
    module, named = "_".join(words), "".join(word.capitalize() for word in words)
    if keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise UserError(f"{name!r} is a word of Python; choose another name")
    if module in {each.name for each in vars(capabilities).values() if isinstance(each, Capability)}:
        right = "choose another name (docs/operators.md says how to add an implementation of it)"
        raise UserError(f"the capability {module!r} comes with Penstock; {right}")
    if module == "tests" or importlib.util.find_spec(module) is not None:
        raise UserError(f"there is a Python module {module!r} already, which this would hide; choose another name")
    if taken := {named, module.upper()} & _names_in_the_code():
        raise UserError(
            f"{name!r} would be {taken.pop()} in the code, which has another of that name; choose another name"
        )
    return {"NAME": name, "MODULE": module, "CLASS": named, "CAPABILITY": module.upper()}


def _names_in_the_code() -> set[str]:
    sources = [re.sub(r"@\w+?@", "it", text) for path, text in OPERATOR.items() if path.endswith(".py")]
    return {
        token.string
        for source in sources
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME
    }
