"""Which records are already imported, found without importing MLflow, which takes seconds.

SQLite is asked itself, so a database that is gone or put back tells the truth. For other URIs a ledger in the store
(tracking.json) remembers; it is a cache, and deleting it costs one look at every run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json
from harness.base.log import say
from harness.base.sums import make_room
from harness.runs.store import Store
from harness.tracking.places import database_file, redacted

STAMP = "harness.stamp"
_STAMPS = """
    SELECT tags.value FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)
    WHERE tags.key = ? AND experiments.name = ? AND experiments.lifecycle_stage = 'active'
"""


def known_stamps(uri: str, store: Store, experiment: str) -> frozenset[str]:
    """Stamps of the records of `experiment` at `uri`. May be incomplete if they cannot be determined.

    A deleted experiment in SQLite has none, so that the next import restores it.
    """
    file = database_file(uri)
    if file is None:
        return frozenset(_ledger(store).get(redacted(uri), {}).get(experiment, {}).get("stamps", ()))
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1)) as database:
            return frozenset(stamp for (stamp,) in database.execute(_STAMPS, (STAMP, experiment)))
    except sqlite3.Error:
        return frozenset()


def known_birth(uri: str, store: Store, experiment: str) -> str | None:
    """Id and creation time of `experiment` when the ledger was written. None if the ledger has no entry."""
    known = _ledger(store).get(redacted(uri), {}).get(experiment, {}).get("birth")
    return str(known) if known is not None else None


def remember(uri: str, store: Store, experiment: str, *, birth: str, stamps: frozenset[str]) -> None:
    """Write to the ledger that the records of `stamps` are at `uri`; SQLite needs none."""
    if database_file(uri) is None:
        ledger = dict(_ledger(store))
        entry = {"birth": birth, "stamps": sorted(stamps)}
        ledger[redacted(uri)] = {**ledger.get(redacted(uri), {}), experiment: entry}
        make_room(store.root / "tracking.json")
        write_json(store.root / "tracking.json", ledger)


def _ledger(store: Store) -> Mapping[str, Any]:
    """By address and experiment. A ledger that is damaged is empty, so that all records are sent again."""
    file = store.root / "tracking.json"
    if not os.path.lexists(file):
        return {}
    try:
        content = read_json(file)
    except StoreError:
        content = None
    is_whole = isinstance(content, dict) and all(
        isinstance(known, dict) and all(isinstance(entry, dict) and _is_entry(entry) for entry in known.values())
        for known in content.values()
    )
    if not is_whole:
        say(f"{file} is damaged: records are sent again")
    return content if is_whole else {}


def _is_entry(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("birth"), str) and isinstance(entry.get("stamps"), list)
