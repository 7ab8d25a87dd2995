"""An ablation: a question, a base experiment, arms with declared differences from a baseline, and replicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from harness.config.axes import Axes, Combine, check_axes, count_cells, named_cells
from harness.config.axes import level_name as level_name
from harness.config.base import LoadedSpec, Spec
from harness.config.experiment import Experiment
from harness.config.explain import nearest
from harness.config.overrides import Table, expand, merge
from harness.config.seeds import Replicates, SeedsOnDemand, listed

MOST_RUNS = 20_000
_MARGIN = re.compile(r"\s*(\d*\.?\d+)\s*(points?)?\s*")


def margin_size(margin: str) -> tuple[float, bool]:
    """A margin on the metric's own scale, and whether it was given in points: `"0.3 points"` is (0.003, True).

    Raises:
        ValueError: it is not a positive number, alone or followed by `points`.
    """
    found = _MARGIN.fullmatch(margin)
    if not found or float(found[1]) <= 0:
        raise ValueError(
            f'margin {margin!r} is not a size: write "0.3 points" for shares, and "0.02" for metrics on other scales'
        )
    return (float(found[1]) / 100, True) if found[2] else (float(found[1]), False)


def _a_margin(margin: str) -> str:
    margin_size(margin)
    return margin


Margin = Annotated[str, AfterValidator(_a_margin)]


class ReferenceRow(Spec):
    """A published system without an arm: a row of reported numbers alone."""

    label: str = Field(min_length=1)
    """Its name in reports."""
    reason: str
    """Why no arm trains it."""

    @field_validator("reason")
    @classmethod
    def _stated(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("is empty: state why no arm trains this system")
        return text


class Reference(Spec):
    """A number reported by others for an arm, or for a published system without an arm."""

    arm: str
    """Name of the arm in this ablation, or of a table of `published`."""
    metric: str
    """`set/metric`, for example `imagenet1k/acc1`."""
    value: float
    """The value on the metric's own scale, 0 to 1."""
    source: str
    """Where it was published: paper, table, row."""
    protocol: str = "unknown"
    """How it was measured, according to its source; `unknown` if the source does not say."""

    @field_validator("source", "protocol")
    @classmethod
    def _stated(cls, text: str) -> str:
        if not text.strip():
            raise ValueError('is empty: state where the number was published and how it was measured, or "unknown"')
        return text


class Claim(Spec):
    """A statement that the ablation tests: `arm` is better than `than`, because of `factor`."""

    text: str
    """The claim in words."""
    arm: str
    """The arm that should be better."""
    than: str
    """The arm that it should be better than."""
    metric: str | None = None
    """`set/metric`. Default: the ablation's primary metric."""
    factor: str | None = Field(default=None, examples=["mining", "captions.mixing"])
    """The field or part of the experiment that the claim is about. If the arms differ in anything else, the verdict
    names it and attributes nothing. Default: the one part in which the arms differ."""
    compares: Literal["factor", "systems"] = "factor"
    """`systems`: the claim is about the two arms as a whole, whatever they differ in."""
    margin: Margin | None = Field(default=None, examples=["0.3 points", "0.02"])
    """Differences up to this size do not matter in practice. Default: the ablation's, for its primary metric."""
    source: str = ""
    """Source of the claim."""

    @model_validator(mode="after")
    def _about_one_thing(self) -> Claim:
        if self.compares == "systems" and self.factor is not None:
            raise ValueError('compares = "systems" and a factor exclude each other: remove one of them')
        return self


class Ablation(LoadedSpec):
    """A declared comparison of arms.

    Declare arms by name (`[arms.NAME]` with the fields they change), by axes (`[axes]`, dotted path to a list of
    levels), or by both, which combines every named arm with every cell. Each arm is run once per seed.
    """

    question: str
    """The question to answer, in one sentence."""
    experiment: Experiment
    """The base of every arm; in TOML the path of an experiment file."""
    base: Table = Field(default={})
    """Fields of the base that this ablation changes for all its arms. In TOML: `[base]`."""
    baseline: str
    """The arm to compare the others with. An arm from axes is named `path=level` in the order of the axes, joined by
    `, ` (`captions.count=0, mining.kind=none`). A level that is a table is named by its `kind`."""
    arms: dict[str, Table] = Field(default={})
    """Arms by name, each with the fields that it changes. A table with a different `kind` replaces the base's table."""
    labels: dict[str, str] = Field(default={})
    """Names of arms in reports."""
    axes: Axes = Field(default={})
    """Factors: the dotted path of a field and its levels."""
    combine: Combine = "product"
    """How axes make arms. `product`: all combinations. `zip`: the first levels together, the second levels together,
    and so on. `one_at_a_time`: vary one factor, with all others at their first level."""
    exclude: tuple[Table, ...] = ()
    """Combinations of axes to leave out: dotted paths, each with a level or a list of levels."""
    seeds: Replicates = 3
    """Replicates: a number n (seeds 0 to n-1), the seeds themselves, or `{ until = "decided", least = 3, most = 12 }`:
    after each round of seeds the claims are looked at, and only arms of open claims get more (docs/statistics.md)."""
    primary: str
    """The metric that answers the question: `set/metric`."""
    margin: Margin | None = Field(default=None, examples=["0.3 points", "0.02"])
    """Differences up to this size do not matter in practice; with it, a verdict can be "equal". Fix it before the runs.
    For the primary metric. Shares, such as accuracies, are given in points; other metrics on their own scale."""
    estimation: Literal["shared", "paired"] = "shared"
    """Where the errors of differences come from. `shared`: from the variances of all arms, shrunk towards their mean.
    `paired`: from each pair of arms alone, by a paired t-test over seeds."""
    secondary: tuple[str, ...] = ()
    """Other metrics for the report's table."""
    references: tuple[Reference, ...] = ()
    """Reported numbers to show next to ours."""
    published: dict[str, ReferenceRow] = Field(default={})
    """Published systems without an arm, by name. Their references have rows of their own beside those of the arms."""
    claims: tuple[Claim, ...] = ()
    """Statements on which the report gives a verdict."""
    notes: str = ""
    """Anything that a reader of the report should know."""

    @model_validator(mode="after")
    def _names_exist(self) -> Ablation:
        check_axes(self.axes, self.combine, self.exclude)
        runs = max(len(self.arms), 1) * count_cells(self.axes, self.combine) * len(self.seed_list)
        if runs > MOST_RUNS:
            raise ValueError(f"declares {runs:,} runs, more than {MOST_RUNS:,}: give fewer arms, levels or seeds")
        if self.on_demand and not self.claims:
            raise ValueError(
                'seeds.until = "decided" needs claims to decide: add [[claims]], or give a number of seeds'
            )
        known = [name for name, _ in self.variants()]
        if not known:
            rules = "exclude removes all of them" if self.exclude else "add [arms.NAME] tables, or [axes]"
            raise ValueError(f"there are no arms: {rules}")
        if twice := next((name for name, number in Counter(known).items() if number > 1), None):
            raise ValueError(f"two arms are called {twice!r}: rename one, or remove a repeated level from its axis")
        named = [("baseline", self.baseline)] + [("labels", name) for name in self.labels]
        named += [(f"claims ({claim.text!r})", name) for claim in self.claims for name in (claim.arm, claim.than)]
        arms = set(known)
        for key, name in named:
            if name not in arms:
                raise ValueError(f"{key} names {name!r}, which is not an arm; {nearest(name, known)}")
        self._check_published(known)
        printed = Counter(self.labels.get(name, name) for name in known)
        if shared := next((label for label, number in printed.items() if number > 1), None):
            raise ValueError(f"two arms are printed as {shared!r}: give each its own label")
        return self

    def _check_published(self, arms: Collection[str]) -> None:
        """References are of arms or of published systems, each of which has one and is no arm."""
        rows = {*arms, *self.published}
        referred = {reference.arm for reference in self.references}
        if unknown := next((one.arm for one in self.references if one.arm not in rows), None):
            fix = f"{nearest(unknown, sorted(rows))}; a system without an arm needs [published.{unknown}]"
            raise ValueError(f"references names {unknown!r}, which is not an arm; {fix}")
        labels = {self.labels.get(arm, arm) for arm in arms}
        for name, one in self.published.items():
            if name in arms:
                raise ValueError(f"published.{name} is an arm: remove the table, whose references are then the arm's")
            if name not in referred:
                raise ValueError(f'published.{name} has no reference: add [[references]] with arm = "{name}"')
            if one.label in labels:
                raise ValueError(f"published.{name} is printed as {one.label!r}, as another row: change its label")
            labels.add(one.label)

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of the replicates; on demand, all that there may be."""
        return listed(self.seeds.most if isinstance(self.seeds, SeedsOnDemand) else self.seeds)

    @property
    def on_demand(self) -> SeedsOnDemand | None:
        """How seeds are added until the claims are decided; None if their number is fixed."""
        return self.seeds if isinstance(self.seeds, SeedsOnDemand) else None

    def margin_of(self, claim: Claim) -> str | None:
        """The margin that a claim is judged by."""
        on_primary = (claim.metric or self.primary) == self.primary
        return claim.margin or (self.margin if on_primary else None)

    def variants(self) -> Iterator[tuple[str, Table]]:
        """Every arm as (name, the nested table of fields that it changes), in declared order."""
        return iter(self._variants)

    @cached_property
    def _variants(self) -> list[tuple[str, Table]]:
        cells = [(name, expand(levels)) for name, levels in named_cells(self.axes, self.combine, self.exclude)]
        named = [
            (", ".join(part for part in (name, cell) if part), merge(expand(table), levels))
            for name, table in self.arms.items() or [("", {})]
            for cell, levels in cells
        ]
        arms = dict(named)
        return [(name, self._matched(name, table, arms)) for name, table in named if name]

    def _matched(self, arm: str, table: Table, arms: Mapping[str, Table]) -> Table:
        """The arm's table; if its mining is a placebo of another arm, with that arm's mining in place of its name."""
        mining = self._mining(table)
        match mining:
            case {"kind": "placebo", "of": str(of)}:
                if of not in arms:
                    raise ValueError(f"arms.{arm}.mining.of names {of!r}, which is not an arm; {nearest(of, arms)}")
                match self._mining(arms[of]):
                    case {"kind": "threshold"} as matched:
                        return merge(table, {"mining": {**mining, "of": matched}})
                    case other:
                        kind = other.get("kind", "none")
                        what = f'arms.{arm}.mining is a placebo of {of!r}, whose mining is of kind "{kind}"'
                        raise ValueError(f'{what}; name an arm with mining.kind = "threshold"')
            case _:
                return table

    def _mining(self, table: Table) -> Table:
        """The mining of an arm, as far as it is a table; validated with its experiment."""
        stated = [layer["mining"] for layer in (expand(self.base), table) if isinstance(layer.get("mining"), dict)]
        mining: Table = self.experiment.mining.table
        for layer in stated:
            mining = merge({"mining": mining}, {"mining": layer})["mining"]
        return mining
