"""Effective robustness of models, from numbers measured here or by others (`harness.statistics.robustness`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.base.errors import SpecError
from harness.config.suites import SUITES
from harness.reporting.references import External
from harness.statistics.robustness import BaselineFit, fit_baseline

METRIC = "acc1"
IN_DISTRIBUTION = "imagenet1k"


@dataclass(frozen=True)
class RobustModel:
    """A model's accuracies, 0 to 1."""

    name: str
    here: float
    there: float
    expected: float
    """What the baseline predicts out of distribution."""
    is_outside: bool
    """Whether `here` lies outside the range of the baseline's models, so that the fit is extrapolated."""

    @property
    def effective(self) -> float:
        """The effective robustness, -1 to 1."""
        return self.there - self.expected


@dataclass(frozen=True)
class Shift:
    """A set out of distribution, against the set in distribution."""

    there: str
    here: str
    fit: BaselineFit
    models: tuple[RobustModel, ...]


def shifts(
    models: Iterable[External], baseline: Iterable[External], against: Mapping[str, str]
) -> tuple[list[Shift], list[str]]:
    """Every set of the suite `robustness` that models and baseline have, and why others are left out.

    Args:
        against: the set in distribution by set, such as a subset of its classes; `imagenet1k` for others.

    Raises:
        SpecError: no set can be compared, or an accuracy is 0 or 1.
    """
    ours, theirs = _by_model(models), _by_model(baseline)
    found, absent = [], []
    for there in SUITES["robustness"].members:
        here = against.get(there, IN_DISTRIBUTION)
        measured, fitted = _pairs(ours, here, there), _pairs(theirs, here, there)
        if not measured or len(fitted) < 2:
            who = "no model" if not measured else "fewer than two models of the baseline"
            absent.append(f"{there}: {who} with {here}/{METRIC} and {there}/{METRIC}")
            continue
        try:
            fit = fit_baseline(list(fitted.values()))
            rows = tuple(_row(name, pair, fit) for name, pair in measured.items())
        except ValueError as error:
            raise SpecError(f"{error}", where=f"{there} against {here}", fix="leave that model out") from None
        found.append(Shift(there, here, fit, rows))
    if not found:
        raise SpecError(absent[0], where="robustness", fix="measure both sets with `harness eval --out`")
    return found, absent


def _row(name: str, pair: tuple[float, float], fit: BaselineFit) -> RobustModel:
    here, there = pair
    return RobustModel(name, here, there, fit.expected(here), not fit.lowest <= here <= fit.highest)


def _by_model(numbers: Iterable[External]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for one in numbers:
        known = found.setdefault(one.row, {})
        if known.setdefault(one.metric, one.value) != one.value:
            what = f'two numbers for {one.metric} of "{one.row}"'
            raise SpecError(what, where=one.source, fix="give the model another name, or leave one file out")
    return found


def _pairs(models: Mapping[str, Mapping[str, float]], here: str, there: str) -> dict[str, tuple[float, float]]:
    names = f"{here}/{METRIC}", f"{there}/{METRIC}"
    return {name: (one[names[0]], one[names[1]]) for name, one in models.items() if all(key in one for key in names)}
