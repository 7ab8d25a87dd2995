"""The study: which configuration to train next, how far, and which is best. It does not know runs or files.

Every event of a trial is reported through a method of the study, in the order in which it happened. If the same calls
are repeated on an empty study, it reaches the same state. A search resumes in this way after a restart (see
`SearchFolder.events`), and the benchmark drives the same code with tables of curves.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness.config.search import Exploration, Search, draws
from harness.config.strategy import (
    CmaEsSampler,
    FastBOPolicy,
    GPSampler,
    LadderPolicy,
    NoPruner,
    NSGA2Sampler,
    OptunaPruner,
    PatiencePruner,
    QuasiRandomSampler,
    RandomSampler,
    TPESampler,
)
from harness.searching import fastbo, gp
from harness.searching import pausing_halving as ladder
from harness.searching.samplers import decoded, distributions, encoded, pruner, quasi_random, quietly, sampler

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

Status = Literal["running", "paused", "stopped", "complete", "failed", "skipped"]
Feasible = Callable[[Mapping[str, Any]], str | None]
"""Why a configuration cannot be run; None if it can."""
REDRAWS = 10
"""Maximum number of infeasible suggestions before a feasible configuration is drawn at random."""
REPEATS = 2
"""Maximum number of repeated suggestions, likewise: a converged sampler may suggest the same configuration for ever."""
RANDOM_DRAWS = 1000
VIOLATION = "violation"


@dataclass
class Trial:
    """A configuration and its results so far."""

    number: int
    values: dict[str, Any]
    """Values by dotted path."""
    status: Status = "running"
    curve: dict[int, float] = field(default_factory=dict)
    """The metric after each evaluation, 1 to the full length; the mean over seeds."""
    limit: int | None = None
    """The evaluation up to which it is trained for now; None: to the end."""
    final: tuple[float, ...] | None = None
    """Objectives at the full length."""
    told: float | None = None
    """The value passed to Optuna's `tell`, which the sampler learns from."""
    violation: float = 0.0
    """How far it exceeds the constraints, relative to them; 0 if it does not."""
    notes: dict[str, float] = field(default_factory=dict)
    """A policy's findings: efficient, saturation, residual."""
    why: str = ""
    """Why it was skipped or failed."""
    source: str = "sampled"
    """`sampled` or `warm start`."""

    @property
    def reached(self) -> int:
        """The last evaluation."""
        return max(self.curve, default=0)


@dataclass(frozen=True)
class Assignment:
    """Train a trial: from its checkpoint if it has one, to `until` (the end if None)."""

    number: int
    until: int | None


class SearchStudy:
    """Owns one Optuna study."""

    def __init__(
        self,
        search: Exploration,
        length: int,
        *,
        name: str = "search",
        storage: BaseStorage | None = None,
        feasible: Feasible | None = None,
    ) -> None:
        """Begin an empty study.

        Args:
            length: number of evaluations of a full run.
            storage: Optuna's storage; in memory by default.
            feasible: checks a configuration.
        """
        import optuna

        quietly()
        self.search, self.length = search, length
        self.trials: dict[int, Trial] = {}
        self._feasible: Feasible = feasible or _anything
        self._space = distributions(search.space)
        directions = [objective.goal for objective in search.objectives]
        self.study: Study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["maximize" if goal == "maximise" else "minimize" for goal in directions],
            pruner=pruner(search.pruner, length),
            sampler=optuna.samplers.RandomSampler(seed=search.seed),
        )

    # -- what to do -------------------------------------------------------------------------------------------------

    def next(self) -> Assignment | None:
        """The next trial to train: a paused one to promote, or a new one; None if no new one can be found."""
        number = self.promotable()
        if number is not None:
            return self.resume(number, self._next_rung(self.trials[number]))
        trial = self.ask()
        return None if trial is None else Assignment(trial.number, trial.limit)

    def promotable(self) -> int | None:
        """The configuration that a ladder lets go on to its next rung; None if there is none."""
        policy = self._ladder
        return None if policy is None else ladder.to_promote(policy, self._losses(), self._paused(), self.length)

    def ask(self) -> Trial | None:
        """Begin a configuration that was not tried yet; None if 1,000 random draws find no feasible one."""
        draws_left, repeats_left = REDRAWS, REPEATS
        while draws_left and repeats_left:
            trial = self._suggested()
            tried = any(one.values == trial.values for one in self._tried() if one is not trial)
            why = "suggested before" if tried else self._feasible(trial.values)
            if why is None:
                return trial
            self.skip(trial.number, why)
            draws_left, repeats_left = draws_left - 1, repeats_left - tried
        values = self._drawn()
        return None if values is None else self._enqueued(values)

    def resume(self, number: int, until: int | None) -> Assignment:
        """Resume a paused or stopped trial, up to `until`."""
        trial = self.trials[number]
        trial.status, trial.limit = "running", until
        return Assignment(number, until)

    def closing(self, workers: int) -> list[Assignment]:
        """What is left to train when the budget for new configurations is used up; call again until it is empty."""
        match self.search.pruner:
            case FastBOPolicy() as policy:
                if jobs := self._to_saturation(policy, workers):
                    return jobs
            case NoPruner() | OptunaPruner() | PatiencePruner() | LadderPolicy():
                pass
        return [self.resume(trial.number, None) for trial in self._promising() if trial.final is None]

    # -- what happened ----------------------------------------------------------------------------------------------

    def asked(self, number: int, values: Mapping[str, Any], attrs: Mapping[str, Any] | None = None) -> Trial:
        """Add a trial with known values, such as one that an earlier driver began, as running."""
        import optuna

        frozen = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=encoded(self.search.space, values),
            distributions=self._space,
            system_attrs=dict(attrs or {}),
        )
        self.study.add_trial(frozen)
        assert self._count() == number + 1
        return self._begin(number, dict(values))

    def attrs(self, number: int) -> dict[str, Any]:
        """The attributes that the sampler has set on a trial."""
        return dict(self._frozen(number).system_attrs)

    def skip(self, number: int, why: str) -> None:
        """Mark a trial as skipped, because it cannot be run or was suggested before."""
        self._tell(number, None, "fail")
        self.trials[number].status, self.trials[number].why = "skipped", why

    def known(self, values: Mapping[str, Any], final: Sequence[float], curve: Mapping[int, float]) -> Trial:
        """Add a configuration that was finished outside this search, as a warm start."""
        trial = self.asked(self._count(), values)
        trial.source = "warm start"
        trial.curve.update(curve)
        self.complete(trial.number, final)
        return trial

    def report(self, number: int, level: int, value: float) -> None:
        """Report the metric after evaluation `level` of a trial. This may set the trial's `limit`."""
        trial = self.trials[number]
        if level in trial.curve:
            return
        trial.curve[level] = value
        if len(self.search.objectives) > 1 or trial.told is not None or self._frozen(number).state.is_finished():
            return  # Optuna accepts no intermediate values in these cases
        live = self._live(number)
        live.report(value, level)
        match self.search.pruner:
            case FastBOPolicy() as policy:
                self._apply_fastbo(policy, trial)
            case LadderPolicy():
                pass
            case PatiencePruner() as patience:
                if trial.limit is None and level < self.length and self._stalls(patience, trial):
                    trial.limit = level
            case NoPruner():
                pass
            case OptunaPruner():
                if trial.limit is None and level < self.length and live.should_prune():
                    trial.limit = level

    def pause(self, number: int) -> None:
        """Record that a trial has been trained to its limit."""
        trial = self.trials[number]
        trial.status = "paused"
        match self.search.pruner:
            case LadderPolicy():
                return
            case FastBOPolicy():
                if trial.told is None:
                    self._tell(number, [trial.curve[self._shown(trial)]], "complete")
                    trial.told = trial.curve[self._shown(trial)]
            case NoPruner() | OptunaPruner() | PatiencePruner():
                self._tell(number, None, "prune")
        trial.status = "stopped"

    def complete(self, number: int, final: Sequence[float], violation: float = 0.0) -> None:
        """Record that a trial has been trained to its full length."""
        trial = self.trials[number]
        trial.final, trial.status, trial.violation, trial.limit = tuple(final), "complete", violation, None
        trial.curve[self.length] = final[0]
        if violation > 0:
            self.study._storage.set_trial_user_attr(self._frozen(number)._trial_id, VIOLATION, violation)
        self._tell(number, list(final), "complete")
        if trial.told is None:
            trial.told = final[0]

    def fail(self, number: int, why: str) -> None:
        """Record that a trial's training has failed."""
        self.trials[number].status, self.trials[number].why = "failed", why
        self._tell(number, None, "fail")

    def end(self) -> None:
        """End the study. Trials that wait at a rung are marked as pruned, so that no trial is left running."""
        for trial in self.trials.values():
            if trial.status == "paused":
                trial.status = "stopped"
                self._tell(trial.number, None, "prune")

    # -- what came out ----------------------------------------------------------------------------------------------

    def forecasts(self) -> dict[int, float]:
        """What each configuration is worth as far as anybody can tell, as a loss: at full length where it is known."""
        policy = self._ladder
        climbed = {} if policy is None else ladder.forecasts(policy, self._losses(), self.length)
        found = {}
        for number, trial in self.trials.items():
            if trial.final is not None:
                found[number] = self.loss(trial.final[0])
            elif trial.curve and trial.status not in ("skipped", "failed"):
                found[number] = climbed.get(number, self.loss(trial.curve[trial.reached]))
        return found

    def best(self) -> Trial | None:
        """The winner: the best at full length among the trials that satisfy the constraints."""
        finished = [trial for trial in self.trials.values() if trial.final is not None and trial.violation <= 0]
        return min(finished, key=lambda trial: self.loss(trial.final[0]) if trial.final else 0.0, default=None)

    def loss(self, value: float) -> float:
        """Convert the metric to a loss, of which lower is better."""
        return -value if self.search.objectives[0].goal == "maximise" else value

    # -- within -----------------------------------------------------------------------------------------------------

    def _suggested(self) -> Trial:
        number = self._count()
        spec, seed = self.search.sampler, random.Random(f"{self.search.seed}/{number}").getrandbits(31)
        match spec:
            case QuasiRandomSampler():
                return self._enqueued(quasi_random(spec, self.search.space, self.search.seed, number))
            case GPSampler() if len(self.search.objectives) == 1:
                return self._enqueued(self._improving(spec, seed))
            case RandomSampler() | TPESampler() | GPSampler() | CmaEsSampler() | NSGA2Sampler():
                constrained = self.search.constraints.model_fields_set
                made = sampler(spec, seed, _violation if constrained else None)
        if (policy := self._ladder) is not None:
            return self._enqueued(self._foreseen(made, policy))
        self.study.sampler = made
        asked = self.study.ask(self._space)
        return self._begin(asked.number, decoded(self.search.space, asked.params))

    def _improving(self, spec: GPSampler, seed: int) -> dict[str, Any]:
        """The configuration with the highest expected improvement; a random one during start-up."""
        known = self._shown_losses()
        if len(known) < max(spec.startup, 2):
            return next(draws(self.search, random.Random(seed)))
        running = [one.values for one in self.trials.values() if one.status == "running" and one.number not in known]
        observed = [(self.trials[number].values, loss) for number, loss in known.items()]
        return gp.suggest(self.search.space, observed, running, seed)

    def _shown_losses(self) -> dict[int, float]:
        """What the process is fitted on: forecasts of the ladder, else what was told; constraints broken are worst."""
        if (policy := self._ladder) is not None:
            found = ladder.forecasts(policy, self._losses(), self.length)
        else:
            found = {one.number: self.loss(one.told) for one in self.trials.values() if one.told is not None}
        worst = max(found.values(), default=0.0)
        return {number: worst if self.trials[number].violation > 0 else loss for number, loss in found.items()}

    def _foreseen(self, made: Any, policy: LadderPolicy) -> dict[str, Any]:
        """What the sampler suggests when every configuration is shown to it with its forecast at the full length."""
        import optuna

        view = optuna.create_study(direction=self.study.direction, sampler=made)
        expected = ladder.forecasts(policy, self._losses(), self.length)
        states = optuna.trial.TrialState
        for trial in self.trials.values():
            if trial.status in ("skipped", "failed"):
                continue
            known = expected.get(trial.number)
            view.add_trial(
                optuna.trial.create_trial(
                    state=states.RUNNING if known is None else states.COMPLETE,
                    value=None if known is None else self.loss(known),
                    params=encoded(self.search.space, trial.values),
                    distributions=self._space,
                    user_attrs={VIOLATION: trial.violation},
                )
            )
        return decoded(self.search.space, view.ask(self._space).params)

    def _drawn(self) -> dict[str, Any] | None:
        generator = random.Random(f"{self.search.seed}/drawn/{self._count()}")
        candidates = itertools.islice(draws(self.search, generator), RANDOM_DRAWS)
        tried = [one.values for one in self._tried()]
        return next((one for one in candidates if one not in tried and self._feasible(one) is None), None)

    def _tried(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status != "skipped"]

    def _enqueued(self, values: Mapping[str, Any]) -> Trial:
        return self.asked(self._count(), values)

    def _begin(self, number: int, values: dict[str, Any]) -> Trial:
        trial = self.trials[number] = Trial(number, values)
        if self._ladder is not None:
            trial.limit = self._next_rung(trial)
        return trial

    def _apply_fastbo(self, policy: FastBOPolicy, trial: Trial) -> None:
        if "efficient" in trial.notes:
            return
        errors = {level: self._error(value) for level, value in trial.curve.items()}
        match fastbo.decide(policy, errors, self.length):
            case fastbo.Terminate(at):
                trial.notes |= {"efficient": at, "saturation": self.length, "terminated": 1.0}
                trial.limit = at
            case fastbo.StopAt(efficient, saturation, residual):
                trial.notes |= {"efficient": efficient, "saturation": saturation, "residual": residual}
                trial.limit = efficient if efficient < self.length else None
            case fastbo.Continue():
                pass

    def _stalls(self, spec: PatiencePruner, trial: Trial) -> bool:
        """Whether the last evaluations did not improve on the earlier ones. Optuna's pruner asks if they were worse."""
        losses = [self.loss(trial.curve[level]) for level in sorted(trial.curve)]
        before, after = losses[: -spec.patience - 1], losses[-spec.patience - 1 :]
        return bool(before) and min(after) > min(before) - spec.min_delta

    def _to_saturation(self, policy: FastBOPolicy, workers: int) -> list[Assignment]:
        """Resume the best configurations that have not reached their saturation points."""
        tried = [trial for trial in self.trials.values() if trial.told is not None and trial.violation <= 0]
        number = fastbo.promoted(policy, len(tried), workers)
        best = sorted(tried, key=lambda trial: self.loss(trial.told or 0.0))[:number]
        short = [trial for trial in best if trial.reached < trial.notes.get("saturation", 0) and trial.final is None]
        return [self.resume(one.number, self._until(int(one.notes["saturation"]))) for one in short]

    def _promising(self) -> list[Trial]:
        """The best configurations, which are trained to full length before the search ends."""
        settled = [
            trial.number
            for trial in self.trials.values()
            if trial.status in ("complete", "stopped", "paused") and trial.violation <= 0
        ]
        known = self.forecasts()
        expected = {number: known[number] for number in settled if number in known}
        ranked = sorted(expected, key=lambda number: expected[number])
        return [self.trials[number] for number in ranked[: self.search.finish]]

    def _next_rung(self, trial: Trial) -> int | None:
        policy = self._ladder
        assert policy is not None
        if sum(one.source != "warm start" for one in self._tried()) <= policy.probes:  # it is one itself
            return None
        levels = ladder.telling(policy, self._losses(), self.length)
        return self._until(next(level for level in levels if level > trial.reached))

    def _until(self, level: int) -> int | None:
        return level if level < self.length else None

    def _shown(self, trial: Trial) -> int:
        """The evaluation whose value the sampler receives: the limit, even if training has gone slightly further."""
        return min(trial.limit or self.length, trial.reached)

    def _losses(self) -> dict[int, dict[int, float]]:
        running = (trial for trial in self.trials.values() if trial.status not in ("skipped", "failed"))
        return {one.number: {level: self.loss(value) for level, value in one.curve.items()} for one in running}

    def _paused(self) -> dict[int, int]:
        return {one.number: one.limit for one in self.trials.values() if one.status == "paused" and one.limit}

    def _error(self, value: float) -> float:
        return 1 - value if self.search.objectives[0].goal == "maximise" else value

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _count(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def _live(self, number: int) -> Any:
        import optuna

        return optuna.Trial(self.study, self._frozen(number)._trial_id)

    def _tell(self, number: int, values: list[float] | None, state: Literal["complete", "prune", "fail"]) -> None:
        """Tell Optuna's study how a trial ended. This works once, because a finished trial cannot be changed."""
        import optuna

        if self._frozen(number).state.is_finished():
            return
        states = {
            "complete": optuna.trial.TrialState.COMPLETE,
            "prune": optuna.trial.TrialState.PRUNED,
            "fail": optuna.trial.TrialState.FAIL,
        }
        self.study.tell(number, values, state=states[state])

    @property
    def decides_over_seeds(self) -> bool:
        """Whether evaluations are seeds, not points of training."""
        return self.search.pruner.decides_over_seeds

    @property
    def _ladder(self) -> LadderPolicy | None:
        """The policy that pauses configurations at rungs, if this search has it."""
        match self.search.pruner:
            case LadderPolicy() as policy:
                return policy
            case NoPruner() | OptunaPruner() | PatiencePruner() | FastBOPolicy():
                return None


def _violation(trial: FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get(VIOLATION, 0.0)),)


def _anything(values: Mapping[str, Any]) -> str | None:  # noqa: ARG001
    return None


def feasible_in(search: Search) -> Feasible:
    """Return a check of configurations against the fields' limits and the search's conditions."""

    def why_not(values: Mapping[str, Any]) -> str | None:
        try:
            search.configured(values)
        except ValueError as error:  # pydantic's is one
            return str(error)
        return None

    return why_not
