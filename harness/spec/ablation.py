"""An ablation: a question, a base experiment, arms that differ from a baseline in what is declared, and replicates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.spec.base import Spec
from harness.spec.experiment import Experiment
from harness.spec.overrides import expand, merge

Table = dict[str, Any]


class Reference(Spec):
    """A number that somebody else reported for an arm."""

    arm: str
    """Name of the arm here."""
    metric: str
    """`set/metric`, for example `imagenet1k/acc1`."""
    value: float
    """In the metric's own scale, 0 to 1."""
    source: str
    """Where it stands: paper, table, row."""
    protocol: str = "unknown"
    """How it was measured, as far as its source says."""


class Claim(Spec):
    """A statement that the ablation tests: `arm` has a higher `metric` than `than`."""

    text: str
    """The claim in words."""
    arm: str
    """The arm that should be better."""
    than: str
    """The arm that it should be better than."""
    metric: str | None = None
    """`set/metric`; default: the ablation's primary metric."""
    source: str = ""
    """Who claims it."""


class Ablation(Spec):
    """A declared comparison of arms.

    Arms are given by name (`[arms.NAME]` with the fields they change), by axes (`[axes]`, dotted path to a list of
    levels), or by both, which multiplies them. Each arm is run once for each seed.
    """

    question: str
    """What is to be found out, in one sentence."""
    experiment: Experiment
    """The base that every arm starts from; in TOML the path of an experiment file."""
    base: Table = {}
    """Fields of the base that this ablation changes for all its arms. In TOML: `[base]`."""
    baseline: str
    """The arm that the others are compared with. An arm of axes is named `path=level` in the axes' order, joined by
    `, ` (`captions.count=0, mining.kind=none`)."""
    arms: dict[str, Table] = {}
    """Arms by name, each with the fields that it changes. A table whose `kind` differs replaces the base's."""
    labels: dict[str, str] = {}
    """Arms' names as reports print them."""
    axes: dict[str, tuple[Any, ...]] = {}
    """Factors: the dotted path of a field and its levels."""
    combine: Literal["product", "zip", "one_at_a_time"] = "product"
    """How axes make arms: all combinations, level by level side by side, or every factor alone around the first
    level of each."""
    exclude: tuple[Table, ...] = ()
    """Combinations of axes that make no arm: dotted paths and a level, or a list of levels, each."""
    seeds: int | tuple[int, ...] = 3
    """Replicates: a number n (seeds 0 to n-1), or the seeds themselves."""
    primary: str
    """The metric that answers the question: `set/metric`."""
    secondary: tuple[str, ...] = ()
    """Further metrics for the report's table."""
    references: tuple[Reference, ...] = ()
    """Reported numbers to stand beside ours."""
    claims: tuple[Claim, ...] = ()
    """Statements that the report gives a verdict on."""
    notes: str = ""
    """Anything a reader of the report should know."""

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
        listed = tuple(range(seeds)) if isinstance(seeds, int) else seeds
        if not listed or len(set(listed)) != len(listed) or min(listed) < 0:
            raise ValueError("give at least one seed; seeds are different and not negative")
        return seeds

    @model_validator(mode="after")
    def _names_exist(self) -> Ablation:
        known = [name for name, _ in self.variants()]
        if not known:
            raise ValueError("there is no arm: add [arms.NAME] tables, or [axes]")
        named = [("baseline", self.baseline)] + [("labels", name) for name in self.labels]
        named += [("references", reference.arm) for reference in self.references]
        named += [(f"claims ({claim.text!r})", name) for claim in self.claims for name in (claim.arm, claim.than)]
        for key, name in named:
            if name not in known:
                raise ValueError(f"{key} names {name!r}, which is no arm; the arms are: {'; '.join(known)}")
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of the replicates."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def variants(self) -> Iterator[tuple[str, Table]]:
        """Every arm as (name, the nested table of fields that it changes), in declared order."""
        cells = list(self._cells())
        for name, table in self.arms.items() or [("", {})]:
            for levels in cells:
                cell = ", ".join(f"{path}={level_name(level)}" for path, level in levels.items())
                full = ", ".join(part for part in (name, cell) if part)
                if full:
                    yield full, merge(expand(table), expand(levels))

    def _cells(self) -> Iterator[dict[str, Any]]:
        for levels in _combinations(self.axes, self.combine):
            if not any(_matches(levels, rule) for rule in self.exclude):
                yield levels


def level_name(level: Any) -> str:
    """A level as it stands in an arm's name: a table by its `kind`, anything else as text."""
    if isinstance(level, dict):
        return str(level.get("kind", json.dumps(level, sort_keys=True)))
    return level if isinstance(level, str) else json.dumps(level)


def _combinations(axes: Mapping[str, tuple[Any, ...]], combine: str) -> Iterator[dict[str, Any]]:
    names = list(axes)
    match combine:
        case "product":
            for levels in itertools.product(*axes.values()):
                yield dict(zip(names, levels, strict=True))
        case "zip":
            if len({len(levels) for levels in axes.values()}) > 1:
                raise ValueError('combine = "zip" needs axes of one length')
            for levels in zip(*axes.values(), strict=True):
                yield dict(zip(names, levels, strict=True))
        case "one_at_a_time":
            centre = {name: levels[0] for name, levels in axes.items()}
            yield centre
            for name, levels in axes.items():
                for level in levels[1:]:
                    yield {**centre, name: level}


def _matches(levels: dict[str, Any], rule: Table) -> bool:
    def holds(path: str, wanted: Any) -> bool:
        return path in levels and (levels[path] in wanted if isinstance(wanted, list) else levels[path] == wanted)

    return all(holds(path, wanted) for path, wanted in rule.items())
