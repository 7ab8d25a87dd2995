"""`harness eval`: evaluate checkpoints on evaluation sets, outside any ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.base.files import write_json
from harness.cli.output import table
from harness.execute.evaluate import evaluation_of, present, sources_of, with_averages, without_average
from harness.planning.workspace import Project
from harness.runs.record import EvaluationResult


def measure(
    project: Project,
    checkpoints: Sequence[str],
    suites: Sequence[str],
    protocols: Sequence[str],
    model: str | None,
    out: Path | None,
    processes: int | None = None,
) -> None:
    """Print the metrics of each checkpoint as soon as it is evaluated, and write them as JSON to `out`."""
    evaluation = present(evaluation_of(suites, protocols), project)
    found = {}
    for name, source in sources_of(project, checkpoints, model).items():
        found[name] = source.measure(evaluation, processes)
        for one in with_averages(found[name]):
            _print(name if len(checkpoints) > 1 else "", one)
    results = [one for several in found.values() for one in several]
    for suite, absent in without_average(suites, results).items():
        print(f"no average over {suite}: not measured: {', '.join(absent)}")
    if out is not None:
        write_json(out, {name: [one.model_dump(mode="json") for one in results] for name, results in found.items()})


def _print(checkpoint: str, one: EvaluationResult) -> None:
    rows = [
        [name, f"{metric.value:.4f}", _spread(metric.standard_error), str(metric.samples)]
        for name, metric in one.metrics.items()
    ]
    title = f"{one.set} (protocol {one.protocol_id})"
    table(f"{checkpoint}: {title}" if checkpoint else title, ["metric", "value", "standard error", "samples"], rows)
    for note in one.notes:
        print(f"note: {note}")


def _spread(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"
