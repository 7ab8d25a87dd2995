"""A project's settings, store and plans, shared by the command and the Python API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.base.errors import DataError
from harness.config.ablation import Ablation
from harness.config.data import LATER_FIELDS, Data
from harness.config.load import load
from harness.planning.looks import read_looks
from harness.planning.plan import Plan, Planner, make_plan
from harness.runs.identity import digest
from harness.runs.record import DataReport
from harness.runs.settings import Settings, load_settings
from harness.runs.store import Store


@dataclass(frozen=True)
class Project:
    """A project's settings and the store that they name."""

    settings: Settings
    store: Store

    @classmethod
    def at(cls, start: Path | None = None) -> Project:
        """The project of the nearest harness.toml at or above `start` (default: the working folder).

        Raises:
            SpecError: harness.toml or a HARNESS_ variable is not valid.
            StoreError: a newer harness has written to the store.
        """
        settings = load_settings(start)
        store = Store(settings.store, settings.evaluation_root)
        store.check()
        return cls(settings, store)

    def plan(
        self,
        spec: str | Path | Ablation,
        assignments: Sequence[str] = (),
        *,
        provisional: bool = False,
        name: str | None = None,
    ) -> Plan:
        """Plan an ablation, given as a TOML file or as an object of the Python API.

        Args:
            name: the ablation's name; default: its file's stem.
            provisional: plan even if data is missing on this machine; the affected runs get provisional ids.

        Raises:
            SpecError: the spec is not valid.
            DataError: its data cannot be read.
        """
        ablation = spec if isinstance(spec, Ablation) else load(spec, assignments)
        file = spec.file if isinstance(spec, Ablation) else Path(spec)
        name = name or (file.stem if file else "ablation")
        where = name if isinstance(spec, Ablation) and not file else str(file)
        inspect = self._inspect_or_guess if provisional else self._inspect
        plan = make_plan(ablation, name=name, where=where, inspect=inspect, read_looks=partial(read_looks, self.store))
        plan.settings, plan.file, plan.assignments = self.settings, file, tuple(assignments)
        return plan

    def planner(self, plan: Plan) -> Planner:
        """A planner that adds runs to `plan` one at a time, as a search needs."""
        return Planner(plan, self._inspect)

    def _inspect(self, data: Data) -> DataReport:
        from harness.data.sources.inspection import inspect_data

        report = inspect_data(data, self.store.data)
        if self.store.data.is_dir():  # inspecting a user's data for the first time writes an index
            self.store.begin()
        return report

    def _inspect_or_guess(self, data: Data) -> DataReport:
        try:
            return self._inspect(data)
        except DataError as error:
            stated = data.model_dump(mode="json", exclude=set(LATER_FIELDS - data.model_fields_set))
            from harness.data.sources.patterns import is_here

            fingerprint = f"missing-{digest(stated)}"
            return DataReport(fingerprint=fingerprint, missing=str(error), is_here=is_here(error.where))
