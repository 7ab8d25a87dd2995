"""How a search chooses configurations (samplers) and how far it trains each of them (pruners)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.base import Spec


class RandomSampler(Spec):
    """Independent draws: the control, and what several days of an idle cluster cannot spoil."""

    kind: Literal["random"] = "random"


class QuasiRandomSampler(Spec):
    """A scrambled low-discrepancy sequence: covers the space more evenly than independent draws."""

    kind: Literal["quasi_random"] = "quasi_random"
    sequence: Literal["sobol", "halton"] = "sobol"
    """Which sequence. Choices between names are drawn independently."""


class TPESampler(Spec):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, as Optuna has it."""

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(10, ge=1)
    """Configurations drawn at random before the model is used."""
    candidates: int = Field(24, ge=1)
    """Draws from the good density among which the best ratio is taken."""


class GPSampler(Spec):
    """Gaussian process with expected improvement on finished configurations; Optuna's for several objectives."""

    kind: Literal["gp"] = "gp"
    startup: int = Field(10, ge=1)
    """Configurations drawn at random before the model is used."""
    deterministic: bool = False
    """Whether a value is exact; otherwise its noise is estimated."""


class CmaEsSampler(Spec):
    """Covariance matrix adaptation; for numbers, not for choices, and for budgets of hundreds of configurations."""

    kind: Literal["cma_es"] = "cma_es"
    startup: int = Field(1, ge=1)
    """Configurations drawn at random before the first generation."""
    sigma: float | None = Field(None, gt=0)
    """First standard deviation in units of the ranges; by default a sixth of the narrowest."""


class NSGA2Sampler(Spec):
    """Genetic algorithm for several objectives (Deb et al. 2002)."""

    kind: Literal["nsga2"] = "nsga2"
    population: int = Field(20, ge=2)
    """Configurations in one generation."""
    crossover: float = Field(0.9, ge=0, le=1)
    """Probability that two parents are crossed."""


Sampler = Annotated[
    RandomSampler | QuasiRandomSampler | TPESampler | GPSampler | CmaEsSampler | NSGA2Sampler,
    Field(discriminator="kind"),
]


class NoPruner(Spec):
    """Every configuration is trained to its end."""

    kind: Literal["none"] = "none"


class MedianPruner(Spec):
    """Stops what is worse than the median of the others at the same point (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    startup: int = Field(5, ge=0)
    """Finished configurations before anything is stopped."""
    warmup: int = Field(2, ge=0)
    """Evaluations of a run before it may be stopped."""


class PercentilePruner(Spec):
    """Stops what is not among the best `keep` percent at the same point."""

    kind: Literal["percentile"] = "percentile"
    keep: float = Field(25.0, gt=0, lt=100)
    """Share that goes on, in percent."""
    startup: int = Field(5, ge=0)
    """Finished configurations before anything is stopped."""
    warmup: int = Field(2, ge=0)
    """Evaluations of a run before it may be stopped."""


class ASHAPruner(Spec):
    """Asynchronous successive halving (Li et al. 2020), the stopping variant: 1 in `reduction` goes on at each rung."""

    kind: Literal["asha"] = "asha"
    first_rung: int = Field(1, ge=1)
    """Evaluations before the first decision; the next rungs are `reduction` times as far each."""
    reduction: int = Field(3, ge=2)
    """How many compete for one place in the next rung."""


class HyperbandPruner(Spec):
    """Successive halving in several brackets that begin at different rungs (Li et al. 2018)."""

    kind: Literal["hyperband"] = "hyperband"
    first_rung: int = Field(1, ge=1)
    """Evaluations before the first decision of the greediest bracket."""
    reduction: int = Field(3, ge=2)
    """How many compete for one place in the next rung."""


class WilcoxonPruner(Spec):
    """Trains the seeds of a configuration one after the other, and stops where it loses against the best so far.

    By Wilcoxon's signed-rank test over the seeds that both have.
    """

    kind: Literal["wilcoxon"] = "wilcoxon"
    p: float = Field(0.1, gt=0, lt=1)
    """Stop below this p-value."""
    startup: int = Field(2, ge=1)
    """Seeds before anything is stopped."""


class PatiencePruner(Spec):
    """Stops a run that has not improved on itself for a while."""

    kind: Literal["patience"] = "patience"
    patience: int = Field(3, ge=0)
    """Evaluations without an improvement that are borne; the next one ends the run."""
    min_delta: float = Field(0.0, ge=0)
    """How much better the metric has to become to count as an improvement."""


class FastBOPolicy(Spec):
    """Adaptive fidelity (Jiang et al., CVPR 2024): each configuration is trained to its own efficient point.

    A learning curve is fitted to the evaluations up to the warm-up point; the efficient point is where twice the
    training would gain less than `efficient_below`; what is seen there goes to the sampler. At the end the best are
    resumed to their saturation points. FastBO itself is this policy with `sampler.kind = "gp"`. It needs a metric
    from 0 to 1 and a schedule whose prefix means something (constant, or warm-up-stable-decay).
    """

    kind: Literal["fastbo"] = "fastbo"
    warmup: float = Field(0.2, gt=0, lt=1)
    """The warm-up point w = r_min + warmup * (r_max - r_min), as a share of the full length."""
    drop_ratio: float = Field(0.1, gt=0)
    """alpha: two evaluations in a row that each raise the error by more than this ratio end the configuration."""
    leave_out_drop: bool = True
    """Whether a single such rise is left out of the fit, as the paper has it; its public code fits all values."""
    efficient_below: float = Field(0.001, gt=0)
    """delta_1: least gain of twice the training, on errors from 0 to 1."""
    saturated_below: float = Field(0.0005, gt=0)
    """delta_2: largest change after the saturation point, on errors from 0 to 1."""
    thresholds: Literal["absolute", "relative"] = "absolute"
    """Whether the two thresholds are errors, as the paper has it, or shares of what the curve gains from its first to
    its last point, as the paper's public code scales them for each data set."""
    promoted: Literal["at_least_workers", "at_most_workers"] = "at_least_workers"
    """How many are resumed at the end: the larger of a tenth of all configurations and the number of workers (the
    paper's experiments), or the smaller (its Section 4.3)."""
    promoted_share: float = Field(0.1, gt=0, le=1)
    """The tenth."""


class LadderPolicy(Spec):
    """Successive halving by pausing, with a sampler that is told what each configuration will be worth at the end.

    The first configurations are probes: trained to the end, they show which rungs tell how runs end, and only those
    pause anybody. A later configuration is trained to the first such rung and paused. Whoever is among the best
    1 / `reduction` of a rung goes on to the next from its checkpoint; else a new configuration begins. The sampler sees
    every configuration at the full length: its last value, put forward by what those that went further gained from
    there. At the end the most promising are trained to the full length. A strategy of this project; see
    docs/search.md.
    """

    kind: Literal["ladder"] = "ladder"
    first_rung: int = Field(2, ge=1)
    """Evaluations before the first pause; the next rungs are `reduction` times as far each."""
    reduction: int = Field(3, ge=2)
    """How many compete for one place in the next rung."""
    probes: int = Field(6, ge=0)
    """How many configurations are trained to the full length first, to learn which rungs tell how runs end."""
    trust: float = Field(0.7, ge=-1, le=1)
    """Least rank correlation of a rung with the end, over the probes; a rung below it pauses nobody."""


Pruner = Annotated[
    NoPruner
    | MedianPruner
    | PercentilePruner
    | ASHAPruner
    | HyperbandPruner
    | WilcoxonPruner
    | PatiencePruner
    | FastBOPolicy
    | LadderPolicy,
    Field(discriminator="kind"),
]
