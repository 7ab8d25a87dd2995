"""Evaluate checkpoints outside an ablation. A checkpoint is a run of a store or a weights file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from harness.base.errors import DataError, SpecError
from harness.base.machine import cores
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.explain import explain, nearest
from harness.config.load import load_experiment, model_config
from harness.config.model import Model
from harness.planning.workspace import Project
from harness.runs.noted import find_run
from harness.runs.record import EvaluationResult
from harness.runs.request import Request, on_this_machine, read_request
from harness.runs.suite_averages import averages, holes

if TYPE_CHECKING:
    from harness.node.mteb_model import MtebModel as MtebModel  # for the type of the API's function

WHERE = "harness eval"


def evaluation_of(sets: Sequence[str], protocols: Sequence[str], spec: Path | None = None) -> Evaluation:
    """Build the evaluation spec for sets or suites and named protocols.

    Args:
        spec: an experiment's file, whose `[evaluation]` says how to measure; `sets` and `protocols` are added to it.

    Raises:
        SpecError: a protocol is unknown, two sets have the same name, the file is not valid, or no set is named.
    """
    stated = Evaluation() if spec is None else load_experiment(spec).evaluation
    where = WHERE if spec is None else str(spec)
    asked = {
        "sets": tuple(dict.fromkeys((*stated.sets, *sets))),
        "protocols": tuple(dict.fromkeys((*stated.protocols, *protocols))),
    }
    if not asked["sets"]:
        raise SpecError("no evaluation set is named", where=where, fix="add --suite NAME, or `sets` to [evaluation]")
    try:
        return Evaluation.model_validate(dict(stated) | asked)
    except ValidationError as error:
        raise explain(error, Evaluation, where=where) from None


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint to evaluate."""

    request: Request
    model: Model
    weights: Path | None
    """None: the model names its weights itself."""

    def measure(
        self, evaluation: Evaluation, processes: int | None = None, *, alone: bool = False
    ) -> tuple[EvaluationResult, ...]:
        """Evaluate the checkpoint on the sets of `evaluation`.

        Args:
            processes: number of processes of this machine that share the work; by default one per GPU.
            alone: this process builds no model that needs timm or transformers, and need not import them.

        Raises:
            DataError: an evaluation set is missing or damaged.
            ModelError: the weights do not fit.
        """
        from harness.node.known_results import KnownResults

        store = KnownResults(self.request, self.model, self.weights)
        found = store.read(evaluation)
        if lacking := tuple(reference for reference in evaluation.sets if reference not in found):
            measured = self._measured(evaluation.model_copy(update={"sets": lacking}), processes, alone)
            store.keep(measured)
            found |= {one.reference: one for one in measured}
        return tuple(found[reference] for reference in evaluation.sets)

    def mteb_model(self, name: str) -> MtebModel:
        """The checkpoint as a model of mteb, on this machine's first GPU if it has one.

        Raises:
            ModelError: the weights do not fit.
        """
        from harness.node.checkpoint_evaluation import CheckpointEvaluation
        from harness.node.mteb_model import MtebModel

        one = CheckpointEvaluation(request=self.request, model=self.model, weights=self.weights)
        return MtebModel(one.towers(device := one.device()), name, device)

    def _measured(self, evaluation: Evaluation, processes: int | None, alone: bool) -> tuple[EvaluationResult, ...]:
        import torch

        from harness.node.checkpoint_evaluation import CheckpointEvaluation

        experiment = Experiment.model_validate({**dict(self.request.experiment), "evaluation": evaluation})
        request = Request.model_validate({**dict(self.request), "experiment": experiment})
        one = CheckpointEvaluation(request=request, model=self.model, weights=self.weights, alone=alone)
        return one.carried_out_by(processes or max(torch.cuda.device_count(), 1))


def with_averages(results: Sequence[EvaluationResult]) -> tuple[EvaluationResult, ...]:
    """The results, followed by the averages of suites."""
    return (*results, *averages(results))


def without_average(suites: Sequence[str], results: Iterable[EvaluationResult]) -> dict[str, list[str]]:
    """For each suite without an average: its sets that were not evaluated."""
    return holes(suites, {one.set for one in results})


def present(evaluation: Evaluation, project: Project) -> Evaluation:
    """Restrict `evaluation` to the sets that are on this machine.

    Raises:
        DataError: no set is on this machine.
    """
    available = on_this_machine(evaluation, project.settings.evaluation_root)
    if not available.sets:
        root = str(project.settings.evaluation_root or "harness.toml")
        what = f"no set of {', '.join(evaluation.sets)} is on this machine"
        raise DataError(what, where=root, fix="mirror one there")
    return available


def sources_of(project: Project, checkpoints: Sequence[str], model: str | None) -> dict[str, CheckpointSource]:
    """Resolve checkpoints, keyed by the name under which their results are reported.

    Args:
        checkpoints: runs, weights files, or open_clip's `MODEL:TAG`; `NAME=FILE` gives a file a name.
        model: open_clip's model name or a configuration (.json), for weights files; a folder may hold its own.

    Raises:
        SpecError: a weights file has no model name, or two checkpoints have the same name.
        StoreError: there is no such run, or its weights were changed since it ended.
    """
    return {name: _source(project, place, model) for name, place in named(checkpoints).items()}


def _source(project: Project, place: str, model: str | None) -> CheckpointSource:
    exists, (name, _, tag) = Path(place).exists(), place.partition(":")
    if not exists and tag and "/" not in place:
        return _of_tag(project, name, tag)
    if model is not None and not exists and "/" not in place and "." not in place:
        return _of_tag(project, model, place)
    return _of_file(project, Path(place), model) if model or Path(place).is_dir() else _of_run(project, place)


def _of_tag(project: Project, name: str, tag: str) -> CheckpointSource:
    """Weights that open_clip knows by the tag `tag` of its model `name`."""
    import open_clip

    if not (tags := open_clip.list_pretrained_tags_by_model(name)):
        known = open_clip.list_models()
        raise SpecError(f"open_clip has no weights of a model {name!r}", where=WHERE, fix=nearest(name, known))
    if tag not in tags:
        raise SpecError(f"open_clip has no weights {tag!r} of {name}", where=WHERE, fix=f"known: {', '.join(tags)}")
    spec = Model(name=name, weights=tag)
    return CheckpointSource(Request.of(Experiment(model=spec), "", None, project.settings, threads=cores()), spec, None)


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Key checkpoints by name: NAME of `NAME=FILE`, otherwise the file's name or the run's id.

    Raises:
        SpecError: two checkpoints have the same name.
    """
    found: dict[str, str] = {}
    for one in checkpoints:
        stated, given, place = one.partition("=")
        is_run = Path(one).name.isdecimal() and not Path(one).exists()  # ARM/SEED
        name = stated if given else one if is_run else Path(one).name
        if name in found:
            what = f'two checkpoints are called "{name}": {found[name]} and {place if given else one}'
            raise SpecError(what, where=WHERE, fix="name them: FIRST=FILE SECOND=FILE")
        found[name] = place if given else one
    return found


def _of_run(project: Project, checkpoint: str) -> CheckpointSource:
    if Path(checkpoint).is_file():
        raise SpecError("a weights file does not name its model", where="--model", fix="add --model NAME of open_clip")
    folder = find_run(project.store, checkpoint)
    folder.check_weights()
    stored = read_request(folder)
    request = Request.of(stored.experiment, folder.id, stored.teacher_run, project.settings, stored.threads)
    return CheckpointSource(request, stored.experiment.model.bare(), folder.weights)


def _model_of(file: Path, model: str | None) -> Model:
    config = Path(model) if model and model.endswith(".json") else file / "open_clip_config.json"
    if model and not model.endswith(".json"):
        return Model(name=model)
    if not config.is_file():
        fix = "add --model NAME of open_clip, or --model FILE.json"
        raise SpecError("a folder without open_clip_config.json does not name its model", where=str(file), fix=fix)
    return Model(name=config.stem, config=model_config(config))


def _of_file(project: Project, file: Path, model: str | None) -> CheckpointSource:
    spec = _model_of(file, model)
    request = Request.of(Experiment(model=spec), "", None, project.settings, threads=cores())
    return CheckpointSource(request, spec, file)
