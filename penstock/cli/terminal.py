"""What reaches a terminal: text, and no instructions to it.

Captions, names of files, answers and errors come from media and from other people. A terminal takes some characters as
instructions: to move, to change its title or its keys, to turn the direction of writing. For people they are shown as
U+FFFD; in JSON they are escaped, so that programs read what was there.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 but line feed and tab, DEL, C1, and what turns the direction of writing (Unicode, "Bidirectional Algorithm").
_INSTRUCTIONS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def harmless(text: str) -> str:
    """The text with U+FFFD for each instruction."""
    return _INSTRUCTIONS.sub("\ufffd", text)


def json_line(item: Any) -> str:
    """One JSON object on one line; the same to whoever reads it as JSON."""
    return _INSTRUCTIONS.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(item).decode())


class SafeConsole(Console):
    """One that shows text only, whatever it is given; and that leaves it to `main` what is done when nobody reads any
    more, for rich would end the process itself."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and _INSTRUCTIONS.search(segment.text):
                segment = Segment(harmless(segment.text), segment.style)
            yield segment

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
