"""The command `harness`: a fixed set of verbs, a fast start, and one sentence for every user's mistake."""

from __future__ import annotations

import gc
import os
import sys

from harness.base.errors import HarnessError

__all__ = ["main"]


def main() -> None:
    """Run the command. A user's mistake gives one sentence on stderr and exit status 2."""
    from harness.cli.verbs import app

    # A plan of thousands of runs is a million long-lived objects, which the garbage collector would scan repeatedly.
    gc.set_threshold(100_000, 20, 100)
    try:
        app()
    except HarnessError as error:
        print(f"harness: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
