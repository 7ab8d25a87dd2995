"""The store: the root folder of everything that runs produce. `harness.runs.folder` knows the folder of one run.

store/runs/          a folder for each run, by its id
store/store.json     the version of the store (see `harness.runs.versions`)
store/data/          generated worlds and indexes of shards
store/features/      teacher features, one folder for each (data, teacher)
store/evaluation/    cached features of evaluation sets; may be deleted
store/evaluation_sets/   cached contents of evaluation sets, by the state of their files; may be deleted. versions/ has
                         what each version of a set that a TOML file declares contained
store/ablations/     NAME@ORIGIN.json: the ablations that were carried out (see `harness.runs.noted`)
store/commands/      NAME.PID, locked by each command that carries out the ablation NAME
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import StoreError
from harness.base.files import unwritable
from harness.base.locks import Holder, exclusive, holder
from harness.runs.folder import RunFolder, State
from harness.runs.versions import begin_store, check_store


class _Registered(threading.local):
    """The commands that this thread has registered."""

    def __init__(self) -> None:
        self.files = set[Path]()


_registered = _Registered()


@dataclass(frozen=True)
class Store:
    """The root folder of everything that runs produce."""

    root: Path
    evaluation_root: Path | None = None
    """Folder of evaluation sets on this machine, from the settings."""

    def check(self) -> None:
        """Raise StoreError if a newer harness has written to the store. This writes nothing."""
        check_store(self.root)

    def begin(self) -> None:
        """Create the store and write its version, unless they exist. Call this before writing to the store.

        Raises:
            StoreError: a newer harness has written to it.
        """
        begin_store(self.root)

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run, which need not exist."""
        return RunFolder(self.root / "runs" / run_id)

    def runs(self) -> list[RunFolder]:
        """All run folders."""
        return [RunFolder(path.parent) for path in sorted(self.root.glob("runs/*/spec.json"))]

    def states(self, run_ids: Iterable[str]) -> dict[str, State]:
        """The states of runs. Runs without a folder, which most of a large plan's runs are, cost nothing."""
        try:
            begun = set(os.listdir(self.root / "runs"))
        except (FileNotFoundError, NotADirectoryError):
            begun = set()
        return {run: self.run(run).state() if run in begun else State.MISSING for run in run_ids}

    @property
    def data(self) -> Path:
        """The folder of generated worlds and indexes."""
        return self.root / "data"

    @property
    def features(self) -> Path:
        """The folder of teacher features."""
        return self.root / "features"

    @property
    def evaluation_features(self) -> Path:
        """The folder of cached features of evaluation sets, whose size is bounded."""
        return self.root / "evaluation"

    @property
    def evaluation_sets(self) -> Path:
        """The folder of cached contents of evaluation sets."""
        return self.root / "evaluation_sets"

    @contextmanager
    def registered(self, name: str) -> Iterator[None]:
        """Register this process as one that carries out the ablation `name`. May be nested in one thread.

        Raises:
            StoreError: the store cannot be written.
        """
        self.begin()
        file = self._commands / f"{name}.{os.getpid()}"
        if file in _registered.files:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(file, wait=True))
            except OSError as error:
                raise unwritable(file, error) from error
            stack.callback(file.unlink, missing_ok=True)
            _registered.files.add(file)
            stack.callback(_registered.files.remove, file)
            yield

    def running_commands(self, name: str) -> list[Holder]:
        """The live commands that carry out the ablation `name`."""
        files = [file for file in self._commands.glob("*") if file.name.rpartition(".")[0] == name]
        return [found for file in sorted(files) if (found := holder(file)) is not None]

    @property
    def _commands(self) -> Path:
        return self.root / "commands"

    @property
    def reports(self) -> Path:
        """The default folder of reports."""
        return self.root / "reports"

    def find(self, prefix: str) -> RunFolder:
        """The run whose id begins with `prefix`.

        Raises:
            StoreError: no run's id does, or several runs' ids do.
        """
        found = [folder for folder in self.runs() if folder.id.startswith(prefix)]
        if len(found) != 1:
            fix = "list the ids with `harness status SPEC`" if not found else "give more digits"
            raise StoreError(f"{len(found)} runs have an id that begins with {prefix!r}", where=str(self.root), fix=fix)
        return found[0]
