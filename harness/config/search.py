"""A search: a base experiment, a space of fields and their ranges, what is to be optimised, and what it may cost."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.config.axes import level_name
from harness.config.base import FileSpec, Spec
from harness.config.conditions import Condition, parse_condition
from harness.config.evaluation import set_name
from harness.config.experiment import Experiment, flatten
from harness.config.explain import nearest, problems
from harness.config.overrides import Table, expand, laid_over
from harness.config.seeds import Seeds, listed
from harness.config.strategy import FastBOPolicy, GPSampler, NoPruner, Pruner, Sampler, WilcoxonPruner

COSTS = ("duration_s", "evaluation_s", "images_per_s", "peak_memory_gb")
"""`cost/NAME`: what a record says about what a run used."""
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
    """Whether equal ratios are equally likely, as for learning rates."""

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
    """Whether equal ratios are equally likely."""

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
    """One of some values: names, numbers, or tables (`{ kind = "infonce" }`)."""

    kind: Literal["choice"] = "choice"
    of: tuple[Any, ...]
    """The values."""

    @field_validator("of")
    @classmethod
    def _is_a_choice(cls, of: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [level_name(level) for level in of]
        if len(of) < 2 or len(set(names)) < len(names):
            raise ValueError(f"a choice is between two or more different values, not {', '.join(names) or 'none'}")
        return of

    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.of

    def draw(self, generator: random.Random) -> Any:
        """A value at random."""
        return generator.choice(self.of)

    @property
    def names(self) -> tuple[str, ...]:
        """The values as they are printed and stored."""
        return tuple(level_name(level) for level in self.of)


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]


class SearchObjective(Spec):
    """What is to be optimised."""

    metric: str
    """`set/metric` of an evaluation set, `train/NAME` of the training log, or `cost/NAME` (duration_s, evaluation_s,
    images_per_s, peak_memory_gb)."""
    goal: Literal["maximise", "minimise"] = "maximise"
    """In which direction."""


class Constraints(Spec):
    """What a run may use. A configuration beyond it is trained once, told to the sampler as such, and never wins."""

    peak_memory_gb: float | None = Field(None, gt=0)
    """Largest peak memory."""
    gpu_hours: float | None = Field(None, gt=0)
    """Longest training of one run, in hours of its device."""


class Budget(Spec):
    """What the search may use; it ends when the first of these is used up. Finished runs in the store are free."""

    trials: int | None = Field(None, ge=1)
    """Configurations."""
    runs: float | None = Field(None, gt=0)
    """Training, in runs of the full length: what is stopped early counts for the part that was trained."""
    steps: int | None = Field(None, ge=1)
    """Training, in optimiser steps."""
    gpu_hours: float | None = Field(None, gt=0)
    """Training, in hours of one device (of one worker, where there is no GPU)."""
    duration_min: float | None = Field(None, gt=0)
    """Minutes after the first start of the search in which configurations begin; what runs then comes to its end."""

    @model_validator(mode="after")
    def _is_one(self) -> Budget:
        if not self.model_fields_set:
            raise ValueError("says nothing; give trials, runs, steps, gpu_hours or duration_min")
        if self.runs is not None and self.runs < 1:
            raise ValueError(f"runs = {self.runs:g} is smaller than one run; give at least 1")
        return self


class Confirm(Spec):
    """The winner beside a reference, trained in full on seeds that the search has not used."""

    seeds: int = Field(0, ge=0)
    """How many fresh seeds; 0 confirms nothing."""
    against: Table = Field(default={})
    """Fields of the base that make the reference; by default the base as it is."""


class Exploration(Spec):
    """The part of a search that knows no experiment: a space, what is to be optimised, and how."""

    space: dict[str, Parameter]
    """The dotted path of each field that is searched, and its range."""
    objectives: tuple[SearchObjective, ...]
    """One, or several for a front (quality against cost)."""
    constraints: Constraints = Field(default_factory=Constraints)
    """What a run may use."""
    sampler: Sampler = Field(default_factory=GPSampler)
    """How configurations are chosen."""
    pruner: Pruner = Field(default_factory=NoPruner)
    """How far each of them is trained."""
    finish: int = Field(2, ge=1)
    """At the end, so many of the most promising configurations are trained to the full length if they were not: the
    winner is chosen among values at full length."""
    seed: int = Field(0, ge=0)
    """Of the sampler."""

    @field_validator("objectives")
    @classmethod
    def _some_objectives(cls, objectives: tuple[SearchObjective, ...]) -> tuple[SearchObjective, ...]:
        names = [objective.metric for objective in objectives]
        if not names or len(set(names)) < len(names):
            raise ValueError("give at least one objective, and each once")
        return objectives


class Search(Exploration, FileSpec):
    """A declared search over fields of an experiment."""

    question: str
    """What is to be found out, in one sentence."""
    experiment: Experiment
    """The base that every configuration changes; in TOML the path of an experiment file."""
    base: Table = Field(default={})
    """Fields of the base that this search changes for all its configurations. In TOML: `[base]`."""
    conditions: tuple[str, ...] = ()
    """What a configuration has to fulfil: comparisons of fields and numbers, as in
    `"mining.image_text_guard < mining.image_text"`."""
    seeds: Seeds = 1
    """Runs of each configuration: a number n (seeds 0 to n-1), or the seeds themselves. Its value is their mean."""
    budget: Budget
    """What the search may use."""
    warm_start: bool = True
    """Whether finished runs of the store that lie in the space are told to the sampler first."""
    confirm: Confirm = Field(default_factory=Confirm)
    """The winner against a reference on fresh seeds."""
    notes: str = ""
    """Anything a reader of the report should know."""

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
                    raise ValueError(f"conditions: {path!r} in {text!r} is no field; {nearest(path, known)}")
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
            values: by dotted path.
            seed: replaces the base's.

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
        raise ValueError(f"the range from {low:g} to {high:g} is empty; high has to be above low")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range cannot begin at {low:g}; begin above 0, or leave log out")


def _base(search: Search) -> Experiment:
    try:
        return laid_over(search.experiment, expand(search.base))
    except ValidationError as error:
        raise ValueError(f"base.{_said(error)}") from None


def _said(error: ValidationError) -> str:
    first = problems(error, Experiment)[0]
    return f"{first.key}: {first.what}" + (f"; {first.fix}" if first.fix else "")


def _check_parameter(search: Search, path: str, parameter: Parameter) -> None:
    """A path that exists, and ends of the range that its field takes."""
    for value in parameter.ends():
        try:
            laid_over(search.experiment, expand(search.base), expand({path: value}))
        except ValidationError as error:
            for problem in problems(error, Experiment):
                if problem.key == path or (problem.unknown_key and path.startswith(problem.key)):
                    fix = f"; {problem.fix}" if problem.fix else ""
                    shown = "" if problem.unknown_key else f" at {level_name(value)}"
                    raise ValueError(f"space.{problem.key}{shown}: {problem.what}{fix}") from None


def _check_objective(objective: SearchObjective, base: Experiment) -> None:
    """Refuse an objective that no run will have a value of."""
    group, _, name = objective.metric.partition("/")
    sets = [set_name(reference) for reference in base.evaluation.sets]
    measured = [*sets, "train", "cost"]
    if group not in measured:
        what = f"objective {objective.metric!r} is not evaluated: evaluation.sets has no {group!r}"
        raise ValueError(f"{what}; {nearest(group, measured)}")
    if group == "cost" and name not in COSTS:
        raise ValueError(f"objective {objective.metric!r} is no cost; {nearest(name, COSTS)}")
    found = _METRIC.fullmatch(name)
    if group in sets and (found is None or (found[2] and int(found[2]) not in base.evaluation.recall_k)):
        names = ["acc1", "acc5", "mean_per_class_recall"]
        names += [f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in base.evaluation.recall_k]
        raise ValueError(f"objective {objective.metric!r} is not evaluated; {nearest(name, names)}")


def _check_strategy(search: Search, base: Experiment) -> None:
    """Refuse a pruner that has nothing to decide on."""
    pruner, kind = search.pruner, search.pruner.kind
    if kind == "none":
        return
    if len(search.objectives) > 1:
        raise ValueError(f'pruner.kind = "{kind}" decides by one objective; several can only be trained in full')
    if isinstance(pruner, WilcoxonPruner):
        if len(search.seed_list) < 2:
            raise ValueError("the Wilcoxon pruner decides over seeds; set seeds to 2 or more")
        return
    metric = search.objectives[0].metric
    if metric.startswith("cost/"):
        raise ValueError(f'pruner.kind = "{kind}" needs a metric that is evaluated during training, not {metric!r}')
    if not metric.startswith("train/") and base.evaluation.every is None:
        raise ValueError(
            f'pruner.kind = "{kind}" decides on evaluations during training, and there are none; '
            'set evaluation.every in [base], for example "50 steps"'
        )
    if isinstance(pruner, FastBOPolicy):
        _check_fastbo(metric, base)


def _check_fastbo(metric: str, base: Experiment) -> None:
    if base.train.schedule in ("cosine", "linear"):
        raise ValueError(
            f'FastBO stops and judges configurations early, and with train.schedule = "{base.train.schedule}" the '
            "learning rate there still waits for a decay that lies at the full length, so an early value says little "
            'about the end; set train.schedule = "constant" (or one with a stable phase) in [base]'
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
    raise ValueError(f"of {_FEASIBLE_DRAWS} configurations drawn from the space none can be run ({said})")


def draws(search: Exploration, generator: random.Random) -> Iterator[dict[str, Any]]:
    """Configurations at random, feasible or not, without end."""
    while True:
        yield {path: parameter.draw(generator) for path, parameter in search.space.items()}
