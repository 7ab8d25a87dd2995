"""A search's folder in the store: its spec, the events of its trials, and Optuna's journal, which is only a cache.

store/searches/NAME/
    search.json      the search as it was first started; a different search with the same name is refused
    data.json        what each data set is that the search has used: samples, and what is left out, by reason
    trials.jsonl     the events, one per line; a restart needs only them and the run folders
    trials.damaged   trials.jsonl as it was before lines were left out for the first time
    journal.log      Optuna's storage, rewritten at each start; `optuna-dashboard` reads it
    lock             held by the driver
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.base.errors import StoreError
from harness.base.files import read_bytes, read_json, unwritable, write_bytes, write_json, write_text
from harness.base.locks import exclusive, holder
from harness.base.sums import make_room
from harness.config.experiment import flatten
from harness.config.search import Search
from harness.runs.record import DataReport

MAY_CHANGE = ("budget", "confirm", "finish", "notes", "question", "warm_start")
"""Keys that may change when a search is resumed, because the results so far stay valid."""
SHOWN_CHANGES = 4

_REPORTS = TypeAdapter(dict[str, DataReport])

Event = dict[str, Any]


class SearchFolder:
    """The folder of one search."""

    def __init__(self, store: Path, name: str) -> None:
        self.path = (store / "searches" / name).resolve()
        self.spec, self.log = self.path / "search.json", self.path / "trials.jsonl"
        self.data = self.path / "data.json"
        self.journal, self.lock = self.path / "journal.log", self.path / "lock"
        self.repaired: list[str] = []
        """One sentence for each damaged file that was repaired."""

    @contextmanager
    def held(self, search: Search) -> Iterator[None]:
        """Lock the search for this process. The first time, its spec is frozen; later it is compared.

        Raises:
            StoreError: another process drives the search, or the folder holds a different search.
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
            StoreError: the folder holds a different search; the message contains the differences.
        """
        if self.spec.exists() and (changes := _changes(read_json(self.spec), search)):
            shown = "; ".join(changes[:SHOWN_CHANGES])
            more = f" (and {len(changes) - SHOWN_CHANGES} more)" if len(changes) > SHOWN_CHANGES else ""
            fix = "give the file another name, or move that folder away"
            raise StoreError(f"another search has this name: {shown}{more}", where=str(self.path), fix=fix)

    def events(self, *, only_look: bool = False) -> dict[int, Event]:
        """The events so far, by line number. Lines that are damaged are left out, and out of the file.

        After a kill the last line may be incomplete; the driver finds that event again in the run folders.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            lines = read_bytes(self.log).splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"cannot be read ({error.strerror})", where=str(self.log), fix="restore it") from error
        found: dict[int, Event] = {}
        for number, line in enumerate(lines, 1):
            try:
                found[number] = _event(line)
            except (ValueError, RecursionError):
                is_cut = number == len(lines) and not line.endswith(b"\n")
                why = "was incomplete after a kill" if is_cut else "is damaged"
                self.repaired.append(f"{self.log}: line {number} {why}; it is left out")
        if len(found) < len(lines) and not only_look:
            self.rewrite(found.values())
        return found

    def rewrite(self, events: Iterable[Event]) -> None:
        """Replace the events in the file, after a copy of it was kept beside it.

        Raises:
            StoreError: it cannot be written.
        """
        if not (kept := self.log.with_suffix(".damaged")).exists():
            write_bytes(kept, read_bytes(self.log))
        write_text(self.log, "".join(f"{json.dumps(event)}\n" for event in events))

    def append(self, event: Event) -> None:
        """Write an event to disk. Call this before acting on the event.

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

    def data_reports(self) -> dict[str, DataReport]:
        """What the data sets are that the search has used, by fingerprint.

        Raises:
            StoreError: the file is damaged.
        """
        if not self.data.exists():
            return {}
        try:
            return _REPORTS.validate_json(read_bytes(self.data))
        except (OSError, ValidationError) as error:
            fix = "delete it: the next `harness search` writes it again"
            raise StoreError("cannot be read", where=str(self.data), fix=fix) from error

    def note_data(self, reports: Mapping[str, DataReport]) -> None:
        """Write what the data sets are.

        Raises:
            StoreError: it cannot be written.
        """
        write_json(self.data, _REPORTS.dump_python(dict(reports), mode="json"))

    def fresh_journal(self) -> Path:
        """The path for a new journal. Deletes the old one, after checking it so that damage can be reported."""
        if os.path.lexists(self.journal):
            try:
                for line in read_bytes(self.journal).splitlines(keepends=True):
                    _event(line)
            except (OSError, ValueError, RecursionError):
                self.repaired.append(f"{self.journal}: Optuna's journal was damaged; rebuilt from trials.jsonl")
            make_room(self.journal)
            self.journal.unlink(missing_ok=True)
        return self.journal


def _event(line: bytes) -> Event:
    event = json.loads(line)
    if not isinstance(event, dict) or not line.endswith(b"\n"):
        raise ValueError("not an event")
    return event


def _stated(search: Search, *, defaults: bool = True) -> dict[str, Any]:
    """The part of the spec that identifies the search: everything except paths, budget and texts."""
    table = search.model_dump(mode="json", exclude_defaults=not defaults)
    table["experiment"] = search.experiment.science(defaults=defaults)
    table["evaluation"] = {"every": str(search.experiment.evaluation.every)}
    return {key: value for key, value in table.items() if key not in MAY_CHANGE}


def _changes(before: Any, search: Search) -> list[str]:
    """The differences to the frozen search. A field that was added since then differs unless it has its default."""
    old = flatten(before if isinstance(before, dict) else {})
    new = flatten(json.loads(json.dumps(_stated(search))))
    chosen = flatten(_stated(search, defaults=False)).keys()
    compared = old.keys() | (new.keys() & chosen)
    paths = sorted(path for path in compared if old.get(path) != new.get(path))
    return [f"{path} was {old.get(path)!r} and is {new.get(path)!r}" for path in paths]
