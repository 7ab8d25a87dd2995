"""The table of tests/mutations.py is up to date, and its fast rows are noticed; `make mutations` tries them all."""

from __future__ import annotations

import subprocess
import sys

from tests.mutations import MUTATIONS, ROOT, stale


def test_every_mutation_still_changes_its_line() -> None:
    assert stale() == []
    assert len({(one.file, one.old) for one in MUTATIONS}) == len(MUTATIONS)


def test_the_fast_mutations_are_noticed() -> None:
    """In a process that has not imported the harness, so that its children import the copies."""
    tried = [sys.executable, "-m", "tests.mutations", "--fast", "--jobs", "1"]
    done = subprocess.run(tried, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
