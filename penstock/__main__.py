"""The installed command, and `python -m penstock`."""

import os
import sys

from engine.run import spawn


def entry() -> None:
    """Run one command. Threads still inside an operator must not hold the exit."""
    if sys.argv[1:2] in (["run"], ["demo"]):
        spawn.ahead()
    from penstock.cli.main import main  # what takes a third of a second, while the worker imports what it needs

    code = main()
    if unused := spawn.started_ahead():
        unused.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
