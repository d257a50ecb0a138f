"""A module that does not come back from being imported, until a test lets it."""

import toy_tools

toy_tools.HELD.wait(60)


def never(text: str = "") -> str:
    return text
