"""Samplers choose a search's configurations; pruners decide how far each of them is trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.config.base import Spec


class RandomSampler(Spec):
    """Independent random draws: the control that other samplers should be compared with."""

    kind: Literal["random"] = "random"


class QuasiRandomSampler(Spec):
    """A scrambled low-discrepancy sequence: covers the space more evenly than independent draws."""

    kind: Literal["quasi_random"] = "quasi_random"
    sequence: Literal["sobol", "halton"] = "sobol"
    """Which sequence. Categorical choices are drawn independently."""


class TPESampler(Spec):
    """Multivariate tree-structured Parzen estimator (Bergstra et al. 2011), as implemented in Optuna."""

    kind: Literal["tpe"] = "tpe"
    startup: int = Field(10, ge=1)
    """Configurations drawn at random before the model is used."""
    candidates: int = Field(24, ge=1)
    """Draws from the density of good configurations; the draw with the best density ratio is used."""


class GPSampler(Spec):
    """Gaussian process with expected improvement on finished configurations. Several objectives use Optuna's."""

    kind: Literal["gp"] = "gp"
    startup: int = Field(10, ge=1)
    """Configurations drawn at random before the model is used."""
    deterministic: bool = False
    """Whether values are free of noise; otherwise their noise is estimated."""


class CmaEsSampler(Spec):
    """Covariance matrix adaptation. For numeric fields, not choices, and for budgets of hundreds of configurations."""

    kind: Literal["cma_es"] = "cma_es"
    startup: int = Field(1, ge=1)
    """Configurations drawn at random before the first generation."""
    sigma: float | None = Field(None, gt=0)
    """Initial standard deviation in units of the ranges. Default: a sixth of the narrowest."""


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


class PrunerSpec(Spec):
    """Base of every pruner. Its class variables have no default."""

    decides_during_training: ClassVar[bool]
    """It decides on evaluations during training, so all runs need equally many of them."""
    decides_over_seeds: ClassVar[bool]
    """It decides between the seeds of a configuration, which are trained one after the other."""


class OptunaPruner(PrunerSpec):
    """A pruner of Optuna, which decides after each evaluation."""


class NoPruner(PrunerSpec):
    """Trains every configuration to the full length."""

    kind: Literal["none"] = "none"
    decides_during_training: ClassVar[bool] = False
    decides_over_seeds: ClassVar[bool] = False


class MedianPruner(OptunaPruner):
    """Stops a run that is worse than the median of the others at the same point (Golovin et al. 2017)."""

    kind: Literal["median"] = "median"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    startup: int = Field(5, ge=0)
    """Finished configurations before anything is stopped."""
    warmup: int = Field(2, ge=0)
    """Evaluations of a run before it may be stopped."""


class PercentilePruner(OptunaPruner):
    """Stops a run that is not among the best `keep` percent at the same point."""

    kind: Literal["percentile"] = "percentile"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    keep: float = Field(25.0, gt=0, lt=100)
    """Share of runs that continue, in percent."""
    startup: int = Field(5, ge=0)
    """Finished configurations before anything is stopped."""
    warmup: int = Field(2, ge=0)
    """Evaluations of a run before it may be stopped."""


class ASHAPruner(OptunaPruner):
    """Asynchronous successive halving (Li et al. 2020), stopping variant: 1 in `reduction` continues at each rung."""

    kind: Literal["asha"] = "asha"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    first_rung: int = Field(1, ge=1)
    """Evaluations before the first decision; each next rung is `reduction` times as far."""
    reduction: int = Field(3, ge=2)
    """How many runs compete for one place in the next rung."""


class HyperbandPruner(OptunaPruner):
    """Successive halving in several brackets that start at different rungs (Li et al. 2018)."""

    kind: Literal["hyperband"] = "hyperband"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    first_rung: int = Field(1, ge=1)
    """Evaluations before the first decision of the most aggressive bracket."""
    reduction: int = Field(3, ge=2)
    """How many runs compete for one place in the next rung."""


class WilcoxonPruner(OptunaPruner):
    """Trains the seeds of a configuration in turn, and stops when it is worse than the best configuration so far.

    The decision uses Wilcoxon's signed-rank test over the seeds that both have.
    """

    kind: Literal["wilcoxon"] = "wilcoxon"
    decides_during_training: ClassVar[bool] = False
    decides_over_seeds: ClassVar[bool] = True
    p: float = Field(0.1, gt=0, lt=1)
    """Stop below this p-value."""
    startup: int = Field(2, ge=1)
    """Seeds before anything is stopped."""


class PatiencePruner(PrunerSpec):
    """Stops a run whose metric has stopped improving."""

    kind: Literal["patience"] = "patience"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    patience: int = Field(3, ge=0)
    """Number of evaluations without an improvement that are tolerated; the next one ends the run."""
    min_delta: float = Field(0.0, ge=0)
    """Smallest change of the metric that counts as an improvement."""


class FastBOPolicy(PrunerSpec):
    """Adaptive fidelity (Jiang et al., CVPR 2024): trains each configuration to its own efficient point.

    The policy fits a learning curve to the evaluations up to the warm-up point. At the efficient point, doubling the
    training would gain less than `efficient_below`; the sampler receives the metric at that point. At the end of the
    search the best configurations are resumed to their saturation points. FastBO is this policy with
    `sampler.kind = "gp"`. It needs a metric from 0 to 1, and a schedule under which a shortened run is meaningful
    (constant, or warm-up-stable-decay).
    """

    kind: Literal["fastbo"] = "fastbo"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    warmup: float = Field(0.2, gt=0, lt=1)
    """The warm-up point w = r_min + warmup * (r_max - r_min), as a share of the full length."""
    drop_ratio: float = Field(0.1, gt=0)
    """alpha: a configuration ends when two consecutive evaluations each raise the error by more than this ratio."""
    leave_out_drop: bool = True
    """Whether the fit leaves out a single such rise, as in the paper. The paper's public code fits all values."""
    efficient_below: float = Field(0.001, gt=0)
    """delta_1: smallest worthwhile gain from doubling the training, on errors from 0 to 1."""
    saturated_below: float = Field(0.0005, gt=0)
    """delta_2: largest change after the saturation point, on errors from 0 to 1."""
    thresholds: Literal["absolute", "relative"] = "absolute"
    """`absolute`: the two thresholds are errors, as in the paper. `relative`: they are shares of the curve's gain from
    its first to its last point, as the paper's public code scales them for each data set."""
    promoted: Literal["at_least_workers", "at_most_workers"] = "at_least_workers"
    """How many configurations are resumed at the end: the larger of `promoted_share` of all configurations and the
    number of workers (the paper's experiments), or the smaller of the two (its Section 4.3)."""
    promoted_share: float = Field(0.1, gt=0, le=1)
    """Share of all configurations used by `promoted`; the paper's tenth."""


class LadderPolicy(PrunerSpec):
    """Pausing successive halving, with a sampler that sees the expected final score of each configuration.

    The first configurations are probes. They are trained to the full length and show which rungs predict final scores;
    only those rungs pause runs. A later configuration is trained to the first such rung and paused. A configuration
    among the best 1 / `reduction` of a rung continues to the next rung from its checkpoint; if there is none, a new
    configuration starts. The sampler sees every configuration at the full length: its last value plus the gain that
    configurations trained further made from there. At the end the most promising configurations are trained to the
    full length. This strategy is our own; see docs/search.md.
    """

    kind: Literal["ladder"] = "ladder"
    decides_during_training: ClassVar[bool] = True
    decides_over_seeds: ClassVar[bool] = False
    first_rung: int = Field(2, ge=1)
    """Evaluations before the first pause; each next rung is `reduction` times as far."""
    reduction: int = Field(3, ge=2)
    """How many runs compete for one place in the next rung."""
    probes: int = Field(6, ge=0)
    """Configurations trained to the full length first, to learn which rungs predict final scores."""
    trust: float = Field(0.7, ge=-1, le=1)
    """Minimum rank correlation between scores at a rung and final scores, measured on the probe runs. Rungs below it
    never pause a run."""


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
