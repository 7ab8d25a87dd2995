"""Which ablations a store has carried out: `store/ablations/NAME@ORIGIN.json`, rewritten by each command that runs one.

With these notes a run can be named as `arm/seed`, and runs that no ablation refers to can be found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json
from harness.runs.folder import RunFolder
from harness.runs.store import Store


class NotedAblation(BaseModel):
    """An ablation that was carried out."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    name: str
    question: str
    file: Path | None = None
    """Its spec; None if it was made in Python."""
    assignments: tuple[str, ...] = ()
    cells: Mapping[str, str]
    """Run ids by `arm/seed`."""
    runs: tuple[str, ...]
    """All its runs, teachers included."""


def note(store: Store, command: str, ablation: NotedAblation) -> None:
    """Write the note of an ablation, under the name of its command.

    Raises:
        StoreError: the store cannot be written.
    """
    store.begin()
    write_json(_folder(store) / f"{command}.json", ablation.model_dump(mode="json"))


def noted(store: Store) -> list[NotedAblation]:
    """The ablations that were carried out in the store, by name.

    Raises:
        StoreError: a note is damaged.
    """
    return [_read(file) for file in sorted(_folder(store).glob("*.json"))]


def find_run(store: Store, stated: str) -> RunFolder:
    """The run that `stated` names: an id or its first digits, `arm/seed`, or `ablation:arm/seed`.

    Raises:
        StoreError: no run has this name, or several runs have it.
    """
    if "/" not in stated:
        return store.find(stated)
    ablation, _, cell = stated.rpartition(":")
    notes = [one for one in noted(store) if not ablation or one.name == ablation]
    found = {one.cells[cell]: one.name for one in notes if cell in one.cells}
    if len(found) != 1:
        several = f"give one of {', '.join(f'{name}:{cell} (run {run})' for run, name in found.items())}"
        fix = several if found else "`harness runs` lists ablations, `harness status SPEC` their runs"
        raise StoreError(f"{len(found)} runs are called {stated!r}", where=str(store.root), fix=fix)
    return store.run(next(iter(found)))


def _folder(store: Store) -> Path:
    return store.root / "ablations"


def _read(file: Path) -> NotedAblation:
    try:
        return NotedAblation.model_validate(read_json(file))
    except ValidationError:
        raise StoreError("is damaged", where=str(file), fix="delete it; the next `harness run` writes it") from None
