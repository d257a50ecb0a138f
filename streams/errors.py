"""Whose fault it is: every error Penstock raises says so by its type.

`UserError` is yours (exit 2; `Infeasible`, an objective that cannot be held, 3), `Transient` may pass if tried again,
`Permanent` never will, `Malformed` is whoever wrote those bytes, `LinkError` is the connection. Errors of other
libraries are translated where they enter, with `from`.
"""

MAX_LINE = 2000  # characters of a message: what it repeats may be as long as anybody likes


class PenstockError(Exception):
    """Any error Penstock raises on purpose. The message is one line: what, where, what would be right."""

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= MAX_LINE else line[:MAX_LINE] + "...")


class UserError(PenstockError):
    """The input is wrong: a workflow, an option, a file. The message says what would be right."""


class Infeasible(UserError):
    """What is asked for cannot be held here, whatever is done. The message says what could be."""


class Transient(PenstockError):
    """It failed this time; the same work may succeed later. The worker tries again with backoff."""


class Permanent(PenstockError):
    """It will fail every time. The worker dead-letters the segment and publishes a gap."""


class Malformed(PenstockError):
    """Bytes that came from a wire, a bucket or a file are not what belongs there. Whoever reads them sets them aside,
    says so once, and goes on with the rest."""


class LinkError(PenstockError):
    """NATS cannot be reached, or refused what was asked of it."""


def first_error(error: BaseException) -> BaseException:
    """The error that matters of those a task group collected: the user's first, then ours, then any."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [error]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending = list(error.exceptions) + pending
        else:
            flat.append(error)
    for kind in (UserError, PenstockError):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
