"""A search: a base experiment, a space of fields and their ranges, objectives, and a budget."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.config.axes import level_name
from harness.config.base import LoadedSpec, Spec
from harness.config.conditions import Condition, parse_condition
from harness.config.evaluation import set_name
from harness.config.experiment import Experiment, flatten
from harness.config.explain import nearest, problems
from harness.config.overrides import Table, expand, laid_over
from harness.config.seeds import Seeds, listed
from harness.config.strategy import (
    FastBOPolicy,
    GPSampler,
    LadderPolicy,
    NoPruner,
    OptunaPruner,
    PatiencePruner,
    Pruner,
    Sampler,
)

COSTS = ("duration_s", "evaluation_s", "images_per_s", "peak_memory_gb")
"""Names of `cost/NAME`: what a run used, according to its record."""
_FEASIBLE_DRAWS = 200
_METRIC = re.compile(r"acc1|acc5|mean_per_class_recall|(image|text)_retrieval_recall@(\d+)")


class FloatRange(Spec):
    """A number from `low` to `high`."""

    kind: Literal["float"] = "float"
    low: float
    """Lowest value."""
    high: float
    """Highest value."""
    log: bool = False
    """Whether to draw on a logarithmic scale, as for learning rates."""

    @model_validator(mode="after")
    def _is_a_range(self) -> FloatRange:
        _check_range(self.low, self.high, self.log)
        return self

    def ends(self) -> tuple[Any, ...]:
        """Values at its ends."""
        return self.low, self.high

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.uniform(self.low, self.high)


class IntRange(Spec):
    """A whole number from `low` to `high`, both included."""

    kind: Literal["int"] = "int"
    low: int
    """Lowest value."""
    high: int
    """Highest value."""
    log: bool = False
    """Whether to draw on a logarithmic scale."""

    @model_validator(mode="after")
    def _is_a_range(self) -> IntRange:
        _check_range(self.low, self.high, self.log)
        return self

    def ends(self) -> tuple[Any, ...]:
        """Values at its ends."""
        return self.low, self.high

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.randint(self.low, self.high)


class Choice(Spec):
    """One of several values: names, numbers, or tables (`{ kind = "infonce" }`)."""

    kind: Literal["choice"] = "choice"
    of: tuple[Any, ...]
    """The values."""

    @field_validator("of")
    @classmethod
    def _is_a_choice(cls, of: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [level_name(level) for level in of]
        if len(of) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a choice needs two or more different values, not {', '.join(names) or 'none'}")
        return of

    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.of

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.choice(self.of)

    @property
    def names(self) -> tuple[str, ...]:
        """The values as printed and stored."""
        return tuple(level_name(level) for level in self.of)


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]


class SearchObjective(Spec):
    """A metric to optimise."""

    metric: str
    """`set/metric` of an evaluation set, `train/NAME` of the training log, or `cost/NAME` (duration_s, evaluation_s,
    images_per_s, peak_memory_gb)."""
    goal: Literal["maximise", "minimise"] = "maximise"
    """Direction of the optimisation."""


class Constraints(Spec):
    """Limits for a run. A configuration over a limit is trained once, is infeasible for the sampler, and never wins."""

    peak_memory_gb: float | None = Field(None, gt=0)
    """Largest peak memory."""
    gpu_hours: float | None = Field(None, gt=0)
    """Longest training of one run, in hours of its device."""


class Budget(Spec):
    """What the search may use. It ends when one of these is used up. Finished runs in the store cost nothing."""

    trials: int | None = Field(None, ge=1)
    """Number of configurations."""
    runs: float | None = Field(None, gt=0)
    """Amount of training, in runs of the full length. A run that is stopped early counts for the part it trained."""
    steps: int | None = Field(None, ge=1)
    """Amount of training, in optimiser steps."""
    gpu_hours: float | None = Field(None, gt=0)
    """Amount of training, in hours of one device (of one worker if there is no GPU)."""
    duration_min: float | None = Field(None, gt=0)
    """Minutes after the first start of the search during which configurations may start. Running ones finish."""

    @model_validator(mode="after")
    def _is_one(self) -> Budget:
        if not self.model_fields_set:
            raise ValueError("is empty; give trials, runs, steps, gpu_hours or duration_min")
        if self.runs is not None and self.runs < 1:
            raise ValueError(f"runs = {self.runs:g} is smaller than one run; give at least 1")
        return self


class Confirm(Spec):
    """Confirmation: trains the winner and a reference in full on seeds that the search has not used."""

    seeds: int = Field(0, ge=0)
    """Number of fresh seeds; 0 skips the confirmation."""
    against: Table = Field(default={})
    """Fields that the reference changes in the base. Default: the base as it is."""


class Exploration(Spec):
    """The part of a search that does not depend on an experiment: space, objectives and strategy."""

    space: dict[str, Parameter]
    """The dotted path of each field to search, and its range."""
    objectives: tuple[SearchObjective, ...]
    """One objective, or several for a Pareto front (quality against cost)."""
    constraints: Constraints = Field(default_factory=Constraints)
    """Limits on what a run may use."""
    sampler: Sampler = Field(default_factory=GPSampler)
    """How to choose configurations."""
    pruner: Pruner = Field(default_factory=NoPruner)
    """How far to train each configuration."""
    finish: int = Field(2, ge=1)
    """Number of most promising configurations that are trained to the full length at the end, if they were not. The
    winner is chosen among values at full length."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""

    @field_validator("objectives")
    @classmethod
    def _some_objectives(cls, objectives: tuple[SearchObjective, ...]) -> tuple[SearchObjective, ...]:
        names = [objective.metric for objective in objectives]
        if not names or len(set(names)) < len(names):
            raise ValueError("give at least one objective, and each only once")
        return objectives


class Search(Exploration, LoadedSpec):
    """A declared search over fields of an experiment."""

    question: str
    """The question to answer, in one sentence."""
    experiment: Experiment
    """The base that every configuration changes; in TOML the path of an experiment file."""
    base: Table = Field(default={})
    """Fields of the base that this search changes for all its configurations. In TOML: `[base]`."""
    conditions: tuple[str, ...] = ()
    """Conditions that every configuration must meet: comparisons of fields and numbers, as in
    `"mining.image_text_guard < mining.image_text"`."""
    seeds: Seeds = 1
    """Seeds of each configuration: a number n (seeds 0 to n-1), or the seeds themselves. A configuration's value is
    the mean over them."""
    budget: Budget
    """What the search may use."""
    warm_start: bool = True
    """Whether the sampler starts from the finished runs in the store that lie in the space."""
    confirm: Confirm = Field(default_factory=Confirm)
    """Comparison of the winner with a reference on fresh seeds."""
    notes: str = ""
    """Anything that a reader of the report should know."""

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Search:
        if not self.space:
            raise ValueError("space is empty; name the fields to search and their ranges")
        base = _base(self)
        for path, parameter in self.space.items():
            _check_parameter(self, path, parameter)
        known = {**flatten(base.model_dump(mode="json")), **self.space}
        for text in self.conditions:
            for path in parse_condition(text).paths:
                if path not in known:
                    raise ValueError(f"conditions: {path!r} in {text!r} is not a field; {nearest(path, known)}")
        for objective in self.objectives:
            _check_objective(objective, base)
        _check_strategy(self, base)
        _check_feasible(self)
        return self

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds of each configuration."""
        return listed(self.seeds)

    @property
    def parsed_conditions(self) -> tuple[Condition, ...]:
        """The conditions as values."""
        return tuple(parse_condition(text) for text in self.conditions)

    def configured(self, values: Mapping[str, Any], seed: int | None = None) -> Experiment:
        """The experiment of a configuration.

        Args:
            values: field values by dotted path.
            seed: replaces the base's seed.

        Raises:
            pydantic.ValidationError: the values do not fit together.
            ValueError: a condition does not hold.
        """
        seeded = {} if seed is None else {"seed": seed}
        experiment = laid_over(self.experiment, expand(self.base), expand(values), seeded)
        if self.conditions:
            fields = flatten(experiment.model_dump(mode="json"))
            for condition in self.parsed_conditions:
                condition.check(fields)
        return experiment


def _check_range(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise ValueError(f"the range from {low:g} to {high:g} is empty; high must be above low")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range cannot start at {low:g}; start above 0, or leave log out")


def _base(search: Search) -> Experiment:
    try:
        return laid_over(search.experiment, expand(search.base))
    except ValidationError as error:
        raise ValueError(f"base.{_said(error)}") from None


def _said(error: ValidationError) -> str:
    first = problems(error, Experiment)[0]
    return f"{first.key}: {first.what}" + (f"; {first.fix}" if first.fix else "")


def _check_parameter(search: Search, path: str, parameter: Parameter) -> None:
    """Refuse a path that does not exist, and a range whose ends the field does not accept."""
    for value in parameter.ends():
        try:
            laid_over(search.experiment, expand(search.base), expand({path: value}))
        except ValidationError as error:
            for problem in problems(error, Experiment):
                if problem.path == path or (problem.unknown_key and path.startswith(problem.path)):
                    fix = f"; {problem.fix}" if problem.fix else ""
                    shown = "" if problem.unknown_key else f" at {level_name(value)}"
                    raise ValueError(f"space.{problem.key}{shown}: {problem.what}{fix}") from None


def _check_objective(objective: SearchObjective, base: Experiment) -> None:
    """Refuse an objective for which no run will have a value."""
    group, _, name = objective.metric.partition("/")
    sets = [set_name(reference) for reference in base.evaluation.sets]
    measured = [*sets, "train", "cost"]
    if group not in measured:
        what = f"objective {objective.metric!r} is not evaluated: evaluation.sets has no {group!r}"
        raise ValueError(f"{what}; {nearest(group, measured)}")
    if group == "cost" and name not in COSTS:
        raise ValueError(f"objective {objective.metric!r} is not a cost; {nearest(name, COSTS)}")
    found = _METRIC.fullmatch(name)
    if group in sets and (found is None or (found[2] and int(found[2]) not in base.evaluation.recall_k)):
        names = ["acc1", "acc5", "mean_per_class_recall"]
        names += [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in base.evaluation.recall_k]
        raise ValueError(f"objective {objective.metric!r} is not evaluated; {nearest(name, names)}")


def _check_strategy(search: Search, base: Experiment) -> None:
    """Refuse a pruner that has nothing to base its decisions on."""
    pruner, kind = search.pruner, search.pruner.kind
    if not (pruner.decides_during_training or pruner.decides_over_seeds):
        return
    if len(search.objectives) > 1:
        raise ValueError(
            f'pruner.kind = "{kind}" needs a single objective; with several, every configuration is trained in full'
        )
    if pruner.decides_over_seeds and len(search.seed_list) < 2:
        raise ValueError("the Wilcoxon pruner decides over seeds; set seeds to 2 or more")
    if not pruner.decides_during_training:
        return
    metric = search.objectives[0].metric
    if metric.startswith("cost/"):
        raise ValueError(f'pruner.kind = "{kind}" needs a metric evaluated during training, not {metric!r}')
    if not metric.startswith("train/") and base.evaluation.every is None:
        raise ValueError(
            f'pruner.kind = "{kind}" needs evaluations during training, and there are none; '
            'set evaluation.every in [base], for example "50 steps"'
        )
    match pruner:
        case FastBOPolicy():
            _check_fastbo(metric, base)
        case NoPruner() | OptunaPruner() | PatiencePruner() | LadderPolicy():
            pass


def _check_fastbo(metric: str, base: Experiment) -> None:
    if base.train.schedule in ("cosine", "linear"):
        raise ValueError(
            f'FastBO judges configurations early. With train.schedule = "{base.train.schedule}" the learning rate has '
            "not decayed yet at that point, so an early value says little about the final one; "
            'set train.schedule = "constant" (or one with a stable phase) in [base]'
        )
    if metric.startswith("train/"):
        raise ValueError(f"FastBO needs a metric from 0 to 1, which {metric!r} is not; name an evaluation metric")


def _check_feasible(search: Search) -> None:
    """Refuse a space in which nothing can be run."""
    said = ""
    for values in itertools.islice(draws(search, random.Random(0)), _FEASIBLE_DRAWS):
        try:
            search.configured(values)
            return
        except ValidationError as error:
            said = _said(error)
        except ValueError as error:
            said = str(error)
    raise ValueError(f"none of {_FEASIBLE_DRAWS} configurations drawn from the space can be run ({said})")


def draws(search: Exploration, generator: random.Random) -> Iterator[dict[str, Any]]:
    """An endless iterator of random configurations, feasible or not."""
    while True:
        yield {path: parameter.draw(generator) for path, parameter in search.space.items()}
