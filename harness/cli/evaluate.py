"""`harness eval`: checkpoints measured on evaluation sets, outside any ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from harness.base.errors import DataError, SpecError
from harness.base.files import write_json
from harness.cli.output import table
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.explain import problems, sentence
from harness.config.model import Model
from harness.evaluation.suite_averages import averages, holes
from harness.execute.local.processes import cores
from harness.planning.workspace import Project
from harness.runs.record import EvaluationResult as Measured
from harness.runs.request import Request, on_this_machine, read_request


def asked(suites: Sequence[str], protocols: Sequence[str]) -> Evaluation:
    """What `--suite` and `--protocol` say.

    Raises:
        SpecError: an unknown protocol, or two sets of one name.
    """
    try:
        return Evaluation.model_validate({"sets": tuple(suites), "protocols": tuple(protocols)})
    except ValidationError as error:
        first, *others = problems(error, Evaluation)
        raise sentence(first, where="harness eval", others=len(others)) from None


def measure(
    project: Project,
    checkpoints: Sequence[str],
    evaluation: Evaluation,
    model: str | None,
    out: Path | None,
    processes: int | None = None,
) -> None:
    """Print the metrics of runs' final weights, or of weights files of the open_clip model `model`.

    `processes` of this machine measure together; by default one for each GPU.

    Raises:
        SpecError: a weights file without a model name, or two checkpoints under one name.
        DataError: an evaluation set is missing or damaged.
        ModelError: the weights do not fit.
    """
    here = on_this_machine(evaluation, project.settings.evaluation_root)
    if not here.sets:
        root = str(project.settings.evaluation_root or "harness.toml")
        raise DataError(
            f"no set of {', '.join(evaluation.sets)} is on this machine", where=root, fix="mirror one there"
        )
    found = {}
    for name, place in named(checkpoints).items():
        request, spec, weights = _of_file(project, Path(place), model) if model else _of_run(project, place)
        found[name] = _measured(request, spec, weights, here, processes)
        for one in (*found[name], *averages(found[name])):
            _print(name if len(checkpoints) > 1 else "", one)
    for suite, absent in holes(evaluation.sets, here_names(found)).items():
        print(f"no average over {suite}: not measured: {', '.join(absent)}")
    if out is not None:
        content = {name: [one.model_dump(mode="json") for one in measured] for name, measured in found.items()}
        write_json(out, content)


def named(checkpoints: Sequence[str]) -> dict[str, str]:
    """Checkpoints by what their results are called: NAME of `NAME=FILE`, else the file's name or the run's id.

    Raises:
        SpecError: two go by one name.
    """
    found: dict[str, str] = {}
    for one in checkpoints:
        stated, given, place = one.partition("=")
        name = stated if given else Path(one).name
        if name in found:
            what = f'two checkpoints are called "{name}": {found[name]} and {place if given else one}'
            raise SpecError(what, where="harness eval", fix="name them: FIRST=FILE SECOND=FILE")
        found[name] = place if given else one
    return found


def here_names(found: dict[str, tuple[Measured, ...]]) -> set[str]:
    """Names of the sets that were measured."""
    return {one.set for measured in found.values() for one in measured}


def _print(checkpoint: str, one: Measured) -> None:
    rows = [
        [name, f"{metric.value:.4f}", _spread(metric.standard_error), str(metric.samples)]
        for name, metric in one.metrics.items()
    ]
    title = f"{one.set} (protocol {one.protocol_id})"
    table(f"{checkpoint}: {title}" if checkpoint else title, ["metric", "value", "standard error", "samples"], rows)


def _of_run(project: Project, checkpoint: str) -> tuple[Request, Model, Path]:
    if Path(checkpoint).is_file():
        raise SpecError("a weights file does not name its model", where="--model", fix="add --model NAME of open_clip")
    folder = project.store.find(checkpoint)
    stored = read_request(folder)
    request = Request.of(stored.experiment, folder.id, stored.teacher_run, project.settings, stored.threads)
    model = Model.model_validate(stored.experiment.model.model_dump() | {"weights": None})
    return request, model, folder.weights


def _of_file(project: Project, file: Path, model: str) -> tuple[Request, Model, Path]:
    spec = Model(name=model)
    request = Request.of(Experiment(model=spec), "", None, project.settings, threads=cores())
    return request, spec, file


def _measured(
    request: Request, model: Model, weights: Path, evaluation: Evaluation, processes: int | None
) -> tuple[Measured, ...]:
    import torch

    from harness.node.checkpoint_evaluation import CheckpointEvaluation

    experiment = Experiment.model_validate({**dict(request.experiment), "evaluation": evaluation})
    asked_for = Request.model_validate({**dict(request), "experiment": experiment})
    measurement = CheckpointEvaluation(request=asked_for, model=model, weights=weights)
    return measurement.carried_out_by(processes or max(torch.cuda.device_count(), 1))


def _spread(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"
