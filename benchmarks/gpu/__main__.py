"""Everything that needs a GPU, by one command: figures.json, and the table of docs/performance.md.

    make wheels                             # where packages can be had: what a bare machine lacks, into build/wheels
    make gpu                                # on the GPU machine: the parts that figures.json lacks; ten minutes at most
    python -m benchmarks.gpu --only p1 p2   # these parts again
    python -m benchmarks.gpu --table        # writes the table of docs/performance.md from figures.json
    python -m benchmarks.gpu --smoke        # every part, tiny, on the CPU: that the command works

Each part is a process of its own with a limit on its time. A part that failed, or for which no time was left, is run
again by the next call. Exit status 1: a part failed.
"""

from __future__ import annotations

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
