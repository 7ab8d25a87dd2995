"""Check which data, evaluation sets, models and metrics of a valid spec would stop its runs on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from harness.base.errors import DataError, HarnessError, ModelError, NotHereError, SpecError
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher
from harness.config.explain import nearest
from harness.config.model import shipped_names
from harness.config.origin import stated_at
from harness.config.protocols import VARIANTS, parted, set_name
from harness.config.suites import annotations_at, has_long_captions
from harness.planning.plan import Plan
from harness.runs.record import EvaluationResult, Metric
from harness.runs.request import on_this_machine
from harness.runs.settings import Settings
from harness.runs.suite_averages import averages


@dataclass(frozen=True)
class Obstacle:
    """What would stop a run of a plan."""

    error: HarnessError
    key: str
    """The field of the experiment, or of the ablation, that asks for it."""
    arm: str | None = None
    """The first arm that it stops."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether another machine may not have it: data, an evaluation set, weights, a tokenizer, a GPU."""
        from harness.data.sources.patterns import is_here

        is_data = isinstance(self.error, DataError)
        return isinstance(self.error, NotHereError) or (is_data and not is_here(self.error.where))

    def sentence(self, file: Path | None) -> str:
        """The mistake, with the file, line and key that ask for it."""
        place = self.key if file is None else stated_at(file, self.key, self.arm)
        error = self.error
        where = "" if error.where in (None, self.key) or error.where == "evaluation: sets" else f"{error.where}: "
        return f"{place}: {where}{error.what}" + (f"; {error.fix}" if error.fix else "")


def obstacles(plan: Plan, settings: Settings) -> list[Obstacle]:
    """What would stop runs, as far as it can be told without importing anything heavy."""
    found: dict[tuple[str, str], Obstacle] = {}
    for one in _each(plan, settings):
        found.setdefault((one.key, str(one.error)), one)
    return list(found.values())


def _each(plan: Plan, settings: Settings) -> Iterator[Obstacle]:
    arms = {run: arm for (arm, _), run in reversed(plan.cells.items())}
    seen: set[tuple[int, ...]] = set()
    for run in plan.runs.values():  # arms share the objects of the sections that they do not change
        one, arm = run.experiment, arms.get(run.id)
        if (key := tuple(map(id, (one.data, one.evaluation, one.model, one.teacher)))) in seen:
            continue
        seen.add(key)
        report = plan.data[run.identity.fingerprint]
        if report.missing:
            yield Obstacle((SpecError if report.is_here else DataError)(report.missing), "data", arm)
        for field, error in (*_unknown_models(one), *_missing_sets(one, settings)):
            yield Obstacle(error, field, arm)
    yield from _unmeasured(plan, settings)


def _unknown_models(experiment: Experiment) -> Iterator[tuple[str, HarnessError]]:
    """Models that open_clip has not; it is not imported for that."""
    named = [("model.name", experiment.model.name)] if experiment.model.architecture() is None else []
    match experiment.teacher:
        case OpenClipTeacher(model=name, config=None):
            named += [("teacher.model", name)]
        case OpenClipTeacher() | ExperimentTeacher() | None:  # of a config file, or a run of its own
            pass
    place = find_spec("open_clip")
    folders = [] if place is None else [Path(one) / "model_configs" for one in place.submodule_search_locations or ()]
    known = [file.stem for folder in folders for file in sorted(folder.glob("*.json"))]
    for key, name in named:
        if known and name not in (*known, *shipped_names()):
            yield key, ModelError(f"there is no model {name!r}", fix=nearest(name, [*known, *shipped_names()]))


def notes(plan: Plan, settings: Settings) -> list[str]:
    """Claims without enough seeds, what looks wrong about evaluation sets that are here, and which sets of suites are
    not, a sentence each.
    """
    from harness.evaluation.layout import describe

    found: dict[str, None] = {}
    if plan.ablation.claims and len({seed for _, seed in plan.cells}) == 1:
        found["seeds: one seed shows no spread, so every claim stays open; give at least two"] = None
    for experiment in {id(run.experiment.evaluation): run.experiment for run in plan.runs.values()}.values():
        for reference in on_this_machine(experiment.evaluation, settings.evaluation_root).sets:
            try:
                path = _place(reference, experiment, settings)
                notes = describe(path, split=experiment.evaluation.under(reference).split).notes
            except DataError:
                continue  # `obstacles` has it
            found |= dict.fromkeys(f"evaluation set {set_name(reference)}: {note}" for note in notes)
        if absent := _absent(experiment, settings):
            where = settings.evaluation_root or "no evaluation_root in harness.toml"
            what = f"evaluation sets of a suite or protocol ({where}): {', '.join(absent)}"
            found[f"missing: {what}; their averages cannot be reported"] = None
    return list(found)


def _absent(experiment: Experiment, settings: Settings) -> list[str]:
    """Sets of suites and protocols that are not here; runs are evaluated without them."""
    here = on_this_machine(experiment.evaluation, settings.evaluation_root).references
    return [set_name(reference) for reference in experiment.evaluation.references if reference not in here]


def _place(reference: str, experiment: Experiment, settings: Settings) -> Path:
    from harness.data.synthetic.embedded import embedded_sets
    from harness.evaluation.layout import locate

    own = embedded_sets(experiment.data, settings.store / "data")
    return locate(parted(reference)[0], evaluation_root=settings.evaluation_root, embedded=own)


def _is_embedded(reference: str, experiment: Experiment) -> bool:
    return parted(reference)[0] in experiment.data.evaluation_sets


def _missing_sets(experiment: Experiment, settings: Settings) -> Iterator[tuple[str, HarnessError]]:
    spec, key = experiment.evaluation, "evaluation.sets"
    available = on_this_machine(spec, settings.evaluation_root)
    for reference in available.references:
        try:
            if not _is_embedded(reference, experiment):
                place = _place(reference, experiment, settings)
                _check_set(place, spec.under(reference), reference, settings.store / "evaluation_sets")
        except DataError as error:
            yield key, error


def _check_set(path: Path, spec: Evaluation, reference: str, contents: Path) -> None:
    """Refuse a set that is not complete, has no prompt templates or samples, or is not what its version was before."""
    from harness.data.sources.tar import Archive
    from harness.evaluation.contents import contents_at
    from harness.evaluation.layout import TRAIN, check_similarity, check_templates, describe

    layout = describe(path, split=spec.split)
    check_templates(layout, spec)
    check_similarity(layout, spec)
    _, protocol = parted(reference)
    if protocol and VARIANTS[protocol].probe:
        describe(path, split=TRAIN)
    if layout.declared is not None:
        contents_at(path, layout.name, spec.split, contents)
    if annotations_at(path) is not None or has_long_captions(path):
        return  # `describe` has read its samples
    for shard in layout.shards:
        with Archive(shard) as archive:
            if next(archive.members(), None) is not None:
                return
    raise DataError("has no samples", where=str(path / spec.split), fix="write its shards again")


def _unmeasured(plan: Plan, settings: Settings) -> Iterator[Obstacle]:
    """Metrics that the answer needs and no set will give."""
    ablation = plan.ablation
    every = tuple(plan.experiments)
    asked = [("primary", ablation.primary, every)]
    asked += [
        (f"claims[{number}].metric", claim.metric, (claim.arm, claim.than))
        for number, claim in enumerate(ablation.claims)
        if claim.metric is not None
    ]
    given: dict[tuple[int, int], set[str] | None] = {}
    for key, metric, arms in asked:
        for arm in arms:
            one = plan.experiments[arm]
            if (known := given.setdefault((id(one.data), id(one.evaluation)), _given(one, settings))) is None:
                continue  # a set is not here, which is said
            if metric not in known and not metric.startswith("train/"):
                what = f"no evaluation set of arm {arm!r} that is here gives {metric!r}"
                fix = nearest(metric, sorted(known)) if known else "add the set to evaluation.sets"
                yield Obstacle((DataError if _absent(one, settings) else SpecError)(what, fix=fix), key)
                break


def _given(experiment: Experiment, settings: Settings) -> set[str] | None:
    """Every `set/metric` that runs of `experiment` will have; None where a set cannot be looked at."""
    here = on_this_machine(experiment.evaluation, settings.evaluation_root)
    found = []
    for reference in here.references:
        try:
            found.append(_metrics_of(reference, here.under(reference), experiment, settings))
        except DataError:
            return None
    return {f"{one.set}/{name}" for one in (*found, *averages(found)) for name in one.metrics}


def _metrics_of(reference: str, spec: Evaluation, experiment: Experiment, settings: Settings) -> EvaluationResult:
    """The metrics that a set will give, with no values."""
    from harness.evaluation.layout import describe
    from harness.evaluation.registry import wanted
    from harness.runs.record import Task

    name, protocol = parted(reference)
    task: Task = "zeroshot_retrieval" if name.endswith("retrieval") else "zeroshot_classification"
    classes = 0
    if not _is_embedded(reference, experiment):
        layout = describe(_place(reference, experiment, settings), split=spec.split)
        task, classes = layout.task, len(layout.classnames)
    if protocol and VARIANTS[protocol].probe:
        task = "linear_probe"
    too_few = "acc5" if 0 < classes < 5 else "-"
    metrics = {one: Metric(value=0, samples=1) for one in wanted(task, spec) if not one.endswith(too_few)}
    return EvaluationResult(set=set_name(reference), task=task, protocol_id="", protocol={}, metrics=metrics)
