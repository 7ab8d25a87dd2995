"""Measure checkpoints on evaluation sets, outside any ablation: runs of a store, or weights files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.base.errors import DataError, SpecError
from harness.base.machine import cores
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.explain import problems, sentence
from harness.config.model import Model
from harness.evaluation.suite_averages import averages, holes
from harness.planning.workspace import Project
from harness.runs.record import EvaluationResult
from harness.runs.request import Request, on_this_machine, read_request

WHERE = "harness eval"


def evaluation_of(sets: Sequence[str], protocols: Sequence[str]) -> Evaluation:
    """The evaluation spec of sets or suites, and of named protocols.

    Raises:
        SpecError: an unknown protocol, or two sets of one name.
    """
    try:
        return Evaluation.model_validate({"sets": tuple(sets), "protocols": tuple(protocols)})
    except ValidationError as error:
        first, *others = problems(error, Evaluation)
        raise sentence(first, where=WHERE, others=len(others)) from None


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint to measure."""

    request: Request
    model: Model
    weights: Path

    def measure(self, evaluation: Evaluation, processes: int | None = None) -> tuple[EvaluationResult, ...]:
        """The results on the sets of `evaluation`.

        Args:
            processes: how many of this machine measure together; by default one for each GPU.

        Raises:
            DataError: an evaluation set is missing or damaged.
            ModelError: the weights do not fit.
        """
        import torch

        from harness.node.checkpoint_evaluation import CheckpointEvaluation

        experiment = Experiment.model_validate({**dict(self.request.experiment), "evaluation": evaluation})
        request = Request.model_validate({**dict(self.request), "experiment": experiment})
        one = CheckpointEvaluation(request=request, model=self.model, weights=self.weights)
        return one.carried_out_by(processes or max(torch.cuda.device_count(), 1))


def with_averages(results: Sequence[EvaluationResult]) -> tuple[EvaluationResult, ...]:
    """Results, and after them the averages of suites."""
    return (*results, *averages(results))


def without_average(suites: Sequence[str], results: Iterable[EvaluationResult]) -> dict[str, list[str]]:
    """For each suite that has no average: the sets that were not measured."""
    return holes(suites, {one.set for one in results})


def present(evaluation: Evaluation, project: Project) -> Evaluation:
    """`evaluation` with the sets of its suites that are on this machine.

    Raises:
        DataError: none is.
    """
    here = on_this_machine(evaluation, project.settings.evaluation_root)
    if not here.sets:
        root = str(project.settings.evaluation_root or "harness.toml")
        what = f"no set of {', '.join(evaluation.sets)} is on this machine"
        raise DataError(what, where=root, fix="mirror one there")
    return here


def sources_of(project: Project, checkpoints: Sequence[str], model: str | None) -> dict[str, CheckpointSource]:
    """Checkpoints by what their results are called.

    Args:
        checkpoints: run ids or weights files; `NAME=FILE` names one.
        model: open_clip's name of the model of weights files.

    Raises:
        SpecError: a weights file without a model name, or two checkpoints under one name.
        StoreError: there is no such run.
    """
    return {
        name: _of_file(project, Path(place), model) if model else _of_run(project, place)
        for name, place in named(checkpoints).items()
    }


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Checkpoints by name: NAME of `NAME=FILE`, else the file's name or the run's id.

    Raises:
        SpecError: two have the same name.
    """
    found: dict[str, str] = {}
    for one in checkpoints:
        stated, given, place = one.partition("=")
        name = stated if given else Path(one).name
        if name in found:
            what = f'two checkpoints are called "{name}": {found[name]} and {place if given else one}'
            raise SpecError(what, where=WHERE, fix="name them: FIRST=FILE SECOND=FILE")
        found[name] = place if given else one
    return found


def _of_run(project: Project, checkpoint: str) -> CheckpointSource:
    if Path(checkpoint).is_file():
        raise SpecError("a weights file does not name its model", where="--model", fix="add --model NAME of open_clip")
    folder = project.store.find(checkpoint)
    stored = read_request(folder)
    request = Request.of(stored.experiment, folder.id, stored.teacher_run, project.settings, stored.threads)
    model = Model.model_validate(stored.experiment.model.model_dump() | {"weights": None})
    return CheckpointSource(request, model, folder.weights)


def _of_file(project: Project, file: Path, model: str) -> CheckpointSource:
    spec = Model(name=model)
    request = Request.of(Experiment(model=spec), "", None, project.settings, threads=cores())
    return CheckpointSource(request, spec, file)
