"""The command `harness`: a fixed set of verbs, a fast start, and one sentence for every user's mistake."""

from __future__ import annotations

import gc
import os
import sys

from harness.base.boundary import as_sentence, defect
from harness.base.exit_status import DEFECT, USER_ERROR
from harness.base.terminal import safe_streams

__all__ = ["main"]


def main() -> None:
    """Run the command.

    A user's mistake gives one sentence on stderr and exit status 2. A defect of the harness gives one that names the
    file with the traceback, and exit status 70.
    """
    # A plan of thousands of runs is a million long-lived objects, which the garbage collector would scan repeatedly.
    gc.set_threshold(100_000, 20, 100)
    with safe_streams():
        try:
            from harness.cli.verbs import app

            app()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except Exception as error:
            told = as_sentence(error)
            print(f"harness: {told or defect(error)}", file=sys.stderr)
            sys.exit(USER_ERROR if told else DEFECT)
