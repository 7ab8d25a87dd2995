"""A search that the old code began and was stopped in: the current code continues it to its end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.before.old import JOBS, PATIENCE_S, Harness, runs

TRIALS = 5
"""The budget in search.toml."""
TRIES = 3
"""On a busy machine a search may be over before it is stopped."""
SETTLED = {"complete", "paused", "failed"}
Event = dict[str, Any]


def events(store: Path) -> list[Event]:
    """What has happened in the search so far; a line that is being written is left out."""
    file = store / "searches/search/trials.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def asked(store: Path) -> dict[int, Any]:
    """The values of each trial, without those that were skipped."""
    found = events(store)
    skipped = {event["number"] for event in found if event["event"] == "skipped"}
    return {one["number"]: one["values"] for one in found if one["event"] == "asked" and one["number"] not in skipped}


def settled(store: Path) -> int:
    """How many trials have come to an end or to a pause."""
    return sum(event["event"] in SETTLED for event in events(store))


def stopped_in_the_middle(old: Harness, store: Path) -> bool:
    """Have the old code search until some trials have ended and one is in training; then stop it.

    Returns:
        False where it had begun all its trials by then.
    """
    command = old.start(store, "search", "search.toml", "--jobs", JOBS)
    try:
        until = time.monotonic() + PATIENCE_S
        while command.poll() is None and not (settled(store) and len(asked(store)) > settled(store)):
            assert time.monotonic() < until, events(store)
            time.sleep(0.005)
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=PATIENCE_S) in (0, 1), store.with_name(f"{store.name}.log").read_text()
    finally:
        command.kill()
        command.wait()
    return command.returncode == 1 and len(asked(store)) < TRIALS


@pytest.mark.slow
def test_the_current_code_continues_a_search(old: Harness, current: Harness, tmp_path: Path) -> None:
    stores = (tmp_path / f"store-{number}" for number in range(TRIES))
    store = next(store for store in stores if stopped_in_the_middle(old, store))
    before, values = events(store), asked(store)
    assert values
    assert not any(event["event"] == "ended" for event in before)
    records = {run: (folder / "record.json") for run, folder in runs(store).items()}
    finished = {run: file.stat().st_mtime_ns for run, file in records.items() if file.exists()}

    said = current.command(store, "search", "search.toml", "--jobs", JOBS)
    assert "shapes/acc1" in said
    assert events(store)[: len(before)] == before
    assert len(asked(store)) == TRIALS
    assert {number: asked(store)[number] for number in values} == values
    assert events(store)[-1]["event"] == "ended"
    assert {run: records[run].stat().st_mtime_ns for run in finished} == finished, "a finished run was trained again"

    straight = tmp_path / "straight"
    old.command(straight, "search", "search.toml", "--jobs", JOBS)
    assert asked(store) == asked(straight), "the continued search asks for other configurations"
