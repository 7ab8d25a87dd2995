"""`harness eval`: a checkpoint measured on evaluation sets, outside any ablation."""

from __future__ import annotations

from pathlib import Path

from harness.cli.show import table
from harness.dispatch.local import cores
from harness.errors import SpecError
from harness.project import Project
from harness.record import Evaluation
from harness.request import Request
from harness.spec.experiment import Experiment
from harness.spec.model import Model


def measure(project: Project, checkpoint: str, sets: tuple[str, ...], model: str | None) -> None:
    """Print the metrics of a run's final weights, or of a weights file of the open_clip model `model`.

    Raises:
        SpecError: a weights file without a model name.
        DataError: an evaluation set is missing or damaged.
        ModelError: the weights do not fit.
    """
    evaluations = _of_file(project, Path(checkpoint), sets, model) if model else _of_run(project, checkpoint, sets)
    for one in evaluations:
        rows = [
            [name, f"{metric.value:.4f}", _spread(metric.standard_error), str(metric.samples)]
            for name, metric in one.metrics.items()
        ]
        table(f"{one.set} (protocol {one.protocol_id})", ["metric", "value", "standard error", "samples"], rows)


def _of_run(project: Project, checkpoint: str, sets: tuple[str, ...]) -> tuple[Evaluation, ...]:
    if Path(checkpoint).is_file():
        raise SpecError("a weights file does not name its model", where="--model", fix="add --model NAME of open_clip")
    folder = project.store.find(checkpoint)
    stored = Request.model_validate_json(folder.request.read_text(encoding="utf-8"))
    request = Request.of(stored.experiment, folder.id, stored.teacher_run, project.settings, stored.threads)
    model = stored.experiment.model.model_dump() | {"weights": None}
    return _measured(request, Model.model_validate(model), folder.weights, sets)


def _of_file(project: Project, file: Path, sets: tuple[str, ...], model: str) -> tuple[Evaluation, ...]:
    request = Request.of(Experiment(), "", None, project.settings, threads=cores())
    return _measured(request, Model(name=model), file, sets)


def _measured(request: Request, model: Model, weights: Path, sets: tuple[str, ...]) -> tuple[Evaluation, ...]:
    import torch

    from harness.measuring import Measuring
    from harness.models import build_towers, load_weights

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = build_towers(model)
    load_weights(towers.model, weights)
    return Measuring(request, towers.to(device), device).measured(sets)


def _spread(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"
