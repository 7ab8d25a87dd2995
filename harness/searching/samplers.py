"""Build Optuna's samplers and pruners from their specs, and convert configurations to Optuna's parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.config.axes import level_name
from harness.config.search import Choice, FloatRange, IntRange, Parameter
from harness.config.strategy import (
    ASHAPruner,
    CmaEsSampler,
    FastBOPolicy,
    GPSampler,
    HyperbandPruner,
    LadderPolicy,
    MedianPruner,
    NoPruner,
    NSGA2Sampler,
    PatiencePruner,
    PercentilePruner,
    Pruner,
    QuasiRandomSampler,
    RandomSampler,
    Sampler,
    TPESampler,
    WilcoxonPruner,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

Space = Mapping[str, Parameter]


def quietly() -> None:
    """Silence Optuna's log lines and its warnings about experimental features."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Convert the search space to Optuna's distributions; choices are represented by their names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for path, parameter in space.items():
        match parameter:
            case FloatRange():
                found[path] = FloatDistribution(parameter.low, parameter.high, log=parameter.log)
            case IntRange():
                found[path] = IntDistribution(parameter.low, parameter.high, log=parameter.log)
            case Choice():
                found[path] = CategoricalDistribution(parameter.names)
    return found


def decoded(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Convert Optuna's parameters to values of fields."""
    values = {}
    for path, parameter in space.items():
        value = params[path]
        values[path] = parameter.of[parameter.names.index(value)] if isinstance(parameter, Choice) else value
    return values


def encoded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values of fields to Optuna's parameters."""
    return {path: level_name(values[path]) if isinstance(p, Choice) else values[path] for path, p in space.items()}


def sampler(spec: Sampler, seed: int, constraints: Callable[[FrozenTrial], Sequence[float]] | None) -> BaseSampler:
    """Build the sampler of a spec. A new one is built per configuration, so a restarted search suggests the same."""
    from optuna import samplers

    match spec:
        case RandomSampler() | QuasiRandomSampler():
            return samplers.RandomSampler(seed=seed)
        case TPESampler():
            return samplers.TPESampler(
                n_startup_trials=spec.startup,
                n_ei_candidates=spec.candidates,
                multivariate=True,
                constant_liar=True,
                seed=seed,
                constraints_func=constraints,
            )
        case GPSampler():
            return samplers.GPSampler(
                n_startup_trials=spec.startup,
                deterministic_objective=spec.deterministic,
                seed=seed,
                constraints_func=constraints,
            )
        case CmaEsSampler():
            return samplers.CmaEsSampler(
                n_startup_trials=spec.startup, sigma0=spec.sigma, seed=seed, warn_independent_sampling=False
            )
        case NSGA2Sampler():
            return samplers.NSGAIISampler(
                population_size=spec.population, crossover_prob=spec.crossover, seed=seed, constraints_func=constraints
            )


def pruner(spec: Pruner, length: int) -> BasePruner:
    """Build the pruner of a spec for runs of `length` evaluations; it never prunes for this project's own policies."""
    from optuna import pruners

    match spec:
        case MedianPruner():
            return pruners.MedianPruner(n_startup_trials=spec.startup, n_warmup_steps=spec.warmup)
        case PercentilePruner():
            return pruners.PercentilePruner(spec.keep, n_startup_trials=spec.startup, n_warmup_steps=spec.warmup)
        case ASHAPruner():
            return pruners.SuccessiveHalvingPruner(min_resource=spec.first_rung, reduction_factor=spec.reduction)
        case HyperbandPruner():
            return pruners.HyperbandPruner(
                min_resource=spec.first_rung, max_resource=length, reduction_factor=spec.reduction
            )
        case WilcoxonPruner():
            return pruners.WilcoxonPruner(p_threshold=spec.p, n_startup_steps=spec.startup)
        case NoPruner() | PatiencePruner() | FastBOPolicy() | LadderPolicy():
            return pruners.NopPruner()


def quasi_random(spec: QuasiRandomSampler, space: Space, seed: int, number: int) -> dict[str, Any]:
    """Point `number` of the scrambled sequence, as values of fields; choices are drawn independently."""
    from scipy.stats import qmc

    numeric = [path for path, parameter in space.items() if not isinstance(parameter, Choice)]
    made: Any = qmc.Sobol if spec.sequence == "sobol" else qmc.Halton
    point = np.zeros(0)
    if numeric:
        sequence = made(len(numeric), rng=np.random.default_rng(seed))
        if number:  # scipy's Sobol cannot skip 0 points
            sequence.fast_forward(number)
        point = sequence.random(1)[0]
    places = dict(zip(numeric, point.tolist(), strict=True))
    generator = random.Random(f"{seed}/{number}")
    return {
        path: generator.choice(parameter.of) if isinstance(parameter, Choice) else at(parameter, places[path])
        for path, parameter in space.items()
    }


def bounds(parameter: FloatRange | IntRange) -> tuple[float, float]:
    """The ends of a range. For whole numbers they lie half a step further out, so each number has an equal share."""
    low, high = float(parameter.low), float(parameter.high)
    return (low - 0.5, high + 0.5) if isinstance(parameter, IntRange) else (low, high)


def at(parameter: FloatRange | IntRange, share: float) -> Any:
    """The value at a share (0 to 1) of a range, on its scale."""
    low, high = bounds(parameter)
    value = low * (high / low) ** share if parameter.log else low + share * (high - low)
    value = min(max(value, parameter.low), parameter.high)
    return round(value) if isinstance(parameter, IntRange) else float(value)
