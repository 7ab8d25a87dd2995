"""A search's folder in the store: what it is, what happened to its trials, and Optuna's journal, which is only a cache.

store/searches/NAME/
    search.json      the search as it was first started; another one under the same name is refused
    trials.jsonl     what happened, a line an event: with the run folders, all that a restart needs
    journal.log      Optuna's storage, written anew at each start; `optuna-dashboard` reads it
    lock             held by the driver
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json, unwritable, write_json, write_text
from harness.config.experiment import flatten
from harness.config.search import Search
from harness.runs.store import exclusive, holder

MAY_CHANGE = ("budget", "confirm", "finish", "notes", "question", "warm_start")
"""A search goes on under another budget; what it has found stays true."""
SHOWN_CHANGES = 4

Event = dict[str, Any]


class SearchFolder:
    """The folder of one search."""

    def __init__(self, store: Path, name: str) -> None:
        self.path = (store / "searches" / name).resolve()
        self.spec, self.log = self.path / "search.json", self.path / "trials.jsonl"
        self.journal, self.lock = self.path / "journal.log", self.path / "lock"
        self.repaired: list[str] = []
        """What was found damaged, a sentence each."""

    @contextmanager
    def held(self, search: Search) -> Iterator[None]:
        """Hold the search for this process; its spec is frozen at the first time and compared from then on.

        Raises:
            StoreError: another process drives it, or it is another search.
        """
        with exclusive(self.lock, wait=False) as mine:
            if not mine:
                other = holder(self.lock)
                who = f"process {other.pid} on {other.host}" if other else "another process"
                raise StoreError(f"{who} drives this search", where=str(self.path), fix="wait for it, or cancel it")
            self.check(search)
            write_json(self.spec, _stated(search))
            yield

    def check(self, search: Search) -> None:
        """Compare the spec with that of the folder, if there is one.

        Raises:
            StoreError: the folder holds another search; the difference is shown.
        """
        if self.spec.exists() and (changes := _changes(read_json(self.spec), search)):
            shown = "; ".join(changes[:SHOWN_CHANGES])
            more = f" (and {len(changes) - SHOWN_CHANGES} more)" if len(changes) > SHOWN_CHANGES else ""
            fix = "give the file another name, or move that folder away"
            raise StoreError(f"another search has this name: {shown}{more}", where=str(self.path), fix=fix)

    def events(self, *, only_look: bool = False) -> list[Event]:
        """What happened so far. A torn last line is dropped: what it told is found again in the run folders.

        Raises:
            StoreError: another line is damaged.
        """
        if not self.log.exists():
            return []
        lines = self.log.read_bytes().splitlines(keepends=True)
        found: list[Event] = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(_event(line))
            except ValueError:
                if number < len(lines):
                    fix = "move the folder away: the search is rebuilt from the runs of the store"
                    raise StoreError(f"line {number} is damaged", where=str(self.log), fix=fix) from None
                if only_look:
                    return found
                write_text(self.log, "".join(f"{json.dumps(event)}\n" for event in found))
                self.repaired.append(f"{self.log}: the last line was torn by a kill and is dropped")
        return found

    def append(self, event: Event) -> None:
        """Write an event before anything is done about it.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            with self.log.open("ab") as stream:
                stream.write(f"{json.dumps(event)}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(self.log, error) from error

    def fresh_journal(self) -> Path:
        """The path of an empty journal; the old one is looked at first, so that a damaged one is told of."""
        if self.journal.exists():
            try:
                for line in self.journal.read_bytes().splitlines(keepends=True):
                    _event(line)
            except ValueError:
                self.repaired.append(f"{self.journal}: Optuna's journal was damaged; rebuilt from trials.jsonl")
            self.journal.unlink()
        return self.journal


def _event(line: bytes) -> Event:
    event = json.loads(line)
    if not isinstance(event, dict) or not line.endswith(b"\n"):
        raise ValueError("no event")
    return event


def _stated(search: Search, *, defaults: bool = True) -> dict[str, Any]:
    """What makes the search this one: everything but place, budget and words."""
    table = search.model_dump(mode="json", exclude_defaults=not defaults)
    table["experiment"] = search.experiment.science(defaults=defaults)
    table["evaluation"] = {"every": str(search.experiment.evaluation.every)}
    return {key: value for key, value in table.items() if key not in MAY_CHANGE}


def _changes(before: Any, search: Search) -> list[str]:
    """What differs from the search as it was frozen. A field that is new since then differs unless at its default."""
    old = flatten(before if isinstance(before, dict) else {})
    new = flatten(json.loads(json.dumps(_stated(search))))
    chosen = flatten(_stated(search, defaults=False)).keys()
    compared = old.keys() | (new.keys() & chosen)
    paths = sorted(path for path in compared if old.get(path) != new.get(path))
    return [f"{path} was {old.get(path)!r} and is {new.get(path)!r}" for path in paths]
