"""A report independent of its format: the answer, the remarks and the tables, each computed on first use."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from harness.reporting.collect.comparison import Column, compare_arms
from harness.reporting.collect.results import TRAINING, Results
from harness.reporting.formats.numbers import clean
from harness.reporting.formats.table import Table
from harness.reporting.sections.answer import Answer, Verdict, answer, verdicts
from harness.reporting.sections.budgets import budget_table
from harness.reporting.sections.controls import controls_table
from harness.reporting.sections.detail import (
    changes_table,
    cost_table,
    data_table,
    failures_table,
    runs_table,
    set_table,
    training_table,
    versions_table,
)
from harness.reporting.sections.effects import FactorEffect, effects_sentence, effects_table, factor_effects
from harness.reporting.sections.fairness import Differences, Flag, flags
from harness.reporting.sections.layouts import grid_table, suite_table
from harness.reporting.sections.overview import overview
from harness.reporting.sections.samples import errors_table, sample_errors, sample_table
from harness.reporting.sections.tables import arms_table, claims_table, references_table
from harness.runs.gallery import Gallery, read_gallery
from harness.statistics import SampleError

MOST_GALLERIES = 3
MOST_GRIDS = 4
"""Number of shown metrics that get their own grid."""


class Document:
    """The contents of a report on `results`."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.ablation = results.plan.ablation
        self.name = clean(results.plan.name)
        self.question = clean(self.ablation.question)
        self.notes = clean(self.ablation.notes)
        self._columns: dict[str, Column] = {}

    def column(self, metric: str) -> Column:
        """The column of a metric."""
        if metric not in self._columns:
            self._columns[metric] = compare_arms(self.results, metric)
        return self._columns[metric]

    @property
    def primary(self) -> Column:
        """The column that answers the question."""
        return self.column(self.ablation.primary)

    @cached_property
    def shown(self) -> tuple[Column, ...]:
        """Columns of the table of arms: the primary metric, then the secondary ones."""
        return tuple(map(self.column, dict.fromkeys((self.ablation.primary, *self.ablation.secondary))))

    @cached_property
    def answer(self) -> Answer:
        """The answer to the question."""
        found = answer(self.results, self.primary)
        said = effects_sentence(self.primary, self.effects)
        return replace(found, details=(*found.details, said)) if said else found

    @cached_property
    def differences(self) -> Differences:
        """The changes of each arm except the baseline."""
        arms = [arm.name for arm in self.results.plan.arms if arm.name != self.ablation.baseline]
        return {arm: self.results.plan.differences(arm) for arm in arms}

    @cached_property
    def flags(self) -> tuple[Flag, ...]:
        """Remarks to read before comparing arms."""
        return (*flags(self.results, self.shown, self.differences), *self._galleries[1])

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdict on each claim."""
        return tuple(verdicts(self.results, self.column))

    @cached_property
    def overview(self) -> tuple[tuple[str, str], ...]:
        """What a reviewer asks first, as pairs of keyword and answer."""
        return overview(self.results, self.primary, self.verdicts, self.differences)

    @cached_property
    def effects(self) -> list[FactorEffect]:
        """The effect of each factor on the primary metric."""
        return factor_effects(self.results, self.primary)

    @cached_property
    def answering(self) -> tuple[Table, ...]:
        """Arms, the paper's layouts, factors, claims, reported numbers."""
        grids = (grid_table(self.results, column) for column in self.shown[:MOST_GRIDS])
        suite = suite_table(self.results, self.shown)
        effects = effects_table(self.primary, self.effects)
        controls = controls_table(self.results, self.primary)
        tables = (claims_table(self.results, self.verdicts), controls, references_table(self.results, self.column))
        samples = sample_table(self.results, self.primary)
        errors = errors_table(self.results, self.primary, self.sample_errors)
        return _present((arms_table(self.results, self.shown), samples, errors, *grids, suite, effects, *tables))

    @cached_property
    def sample_errors(self) -> dict[str, SampleError | None]:
        """By arm: the error over the evaluation samples of its difference to the baseline in the primary metric."""
        return sample_errors(self.results, self.primary)

    @cached_property
    def changes(self) -> Table | None:
        """The table of changes of each arm."""
        return changes_table(self.results, self.differences)

    @property
    def galleries(self) -> tuple[tuple[str, Gallery], ...]:
        """Mined positives of a few arms, the best arms first, each from one of its runs."""
        return self._galleries[0]

    @cached_property
    def _galleries(self) -> tuple[tuple[tuple[str, Gallery], ...], tuple[Flag, ...]]:
        """The galleries, and a remark on each damaged file among those read."""
        ranked = dict.fromkeys([*(arm.arm for arm in self.primary.comparable), *self.results.by_arm])
        found: dict[str, Gallery] = {}
        damaged: list[Flag] = []
        for run in (run for arm in ranked for run in self.results.by_arm[arm]):
            label, file = self.results.labels[run.arm], run.folder.gallery
            if len(found) == MOST_GALLERIES or label in found or not file.exists():
                continue
            gallery = read_gallery(file)
            if gallery is None:
                at = f"{run.folder.id}/{file.name}"
                text = f"The mined captions of {clean(label)}, seed {run.seed}, are left out: {at} is damaged."
                damaged.append(Flag("note", f"{text} `harness preview` shows what mining finds."))
            elif gallery.cards:
                found[label] = gallery
        return tuple(found.items()), tuple(damaged)

    @cached_property
    def sets(self) -> tuple[Table, ...]:
        """A table for each evaluation set."""
        return tuple(
            set_table(self.results, name, [self.column(f"{name}/{metric}") for metric in metrics])
            for name, metrics in self.results.sets.items()
        )

    @cached_property
    def training(self) -> tuple[Table, ...]:
        """Training and cost."""
        columns = [self.column(f"{TRAINING}/{name}") for name in self.results.finals]
        return _present(
            (
                budget_table(self.results, self.primary),
                cost_table(self.results, self.primary),
                training_table(self.results, columns),
            )
        )

    @cached_property
    def failures(self) -> Table | None:
        """Runs without a result."""
        return failures_table(self.results)

    @cached_property
    def provenance(self) -> tuple[Table, ...]:
        """Runs, data and versions."""
        return _present((runs_table(self.results), data_table(self.results), versions_table(self.results)))

    @property
    def detail(self) -> tuple[Table, ...]:
        """All tables except those that answer the question."""
        return _present((self.changes, *self.sets, *self.training, self.failures, *self.provenance))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the report shows: the primary one first."""
        named = [column.metric for column in self.shown]
        named += [one.metric for one in self.verdicts] + [one.metric for one in self.ablation.references]
        named += [f"{name}/{metric}" for name, metrics in self.results.sets.items() for metric in metrics]
        named += [f"{TRAINING}/{name}" for name in self.results.finals]
        return tuple(dict.fromkeys(named))


def _present(tables: Iterable[Table | None]) -> tuple[Table, ...]:
    return tuple(table for table in tables if table is not None)
