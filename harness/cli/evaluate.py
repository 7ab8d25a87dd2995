"""`harness eval`: evaluate checkpoints on evaluation sets, outside any ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.base.errors import SpecError
from harness.base.files import write_json
from harness.cli.output import as_json as print_json
from harness.cli.output import table
from harness.config.suites import SUITES
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
    *,
    spec: Path | None = None,
    as_json: bool = False,
) -> None:
    """Print the metrics of each checkpoint as soon as it is evaluated, or all as JSON at the end.

    Args:
        spec: an experiment's file, whose `[evaluation]` says what to measure and how.
        out: a file to which the whole results are written as JSON.
    """
    asked = evaluation_of(suites, protocols, spec)
    evaluation = present(asked, project)
    found = {}
    sources = sources_of(project, checkpoints, model)
    has_own = bool(evaluation.metrics)  # which may build any model
    alone = not has_own and not any(source.model.may_need_packages for source in sources.values())
    for name, source in sources.items():
        found[name] = source.measure(evaluation, processes, alone=alone)
        for one in with_averages(found[name]) if not as_json else ():
            _print(name if len(checkpoints) > 1 else "", one)
    results = [one for several in found.values() for one in several]
    holes = without_average(asked.sets, results)
    if as_json:
        rows = [row for name, several in found.items() for one in with_averages(several) for row in _rows(name, one)]
        print_json({"results": rows, "without_average": holes})
    for suite, absent in holes.items() if not as_json else ():
        print(f"no average over {suite}: not measured: {', '.join(absent)}")
    if out is not None:
        write_json(out, {name: [one.model_dump(mode="json") for one in results] for name, results in found.items()})


def print_robustness(files: Sequence[Path], baseline: Sequence[Path], against: Sequence[str]) -> None:
    """Print the effective robustness of the models in `files`, with the fit to those in `baseline`.

    Raises:
        SpecError: a file has another format, or nothing can be compared.
    """
    from harness.reporting.references import read_external
    from harness.reporting.robustness import shifts

    pairs = dict(one.partition("=")[::2] for one in against)
    if strange := [one for one in pairs if one not in SUITES["robustness"].members or not pairs[one]]:
        known = ", ".join(SUITES["robustness"].members)
        raise SpecError(f"{strange[0]!r} is no shifted set", where="--against", fix=f"write SET=SET; sets: {known}")
    ours, theirs = ([one for file in several for one in read_external(file)] for several in (files, baseline))
    found, absent = shifts(ours, theirs, pairs)
    for one in found:
        fit = one.fit
        line = f"logit = {fit.slope:.3f} logit({one.here}) {fit.intercept:+.3f}, fitted to {fit.models} models"
        span = f"{fit.lowest:.1%} to {fit.highest:.1%} there, root mean square residual {fit.residual:.1%}"
        rows = [
            [
                model.name,
                *(f"{share:.4f}" for share in (model.here, model.there, model.expected)),
                f"{model.effective:+.4f}",
                "outside the fit's range" if model.is_outside else "",
            ]
            for model in one.models
        ]
        table(f"{one.there}: {line} ({span})", ["model", one.here, one.there, "expected", "effective", ""], rows)
    for reason in absent:
        print(f"left out: {reason}")


def _rows(checkpoint: str, one: EvaluationResult) -> list[dict[str, Any]]:
    head = {"checkpoint": checkpoint, "set": one.set, "protocol_id": one.protocol_id}
    return [
        {**head, "metric": name, **metric.model_dump(include={"value", "standard_error", "samples", "chance"})}
        for name, metric in one.metrics.items()
    ]


def _print(checkpoint: str, one: EvaluationResult) -> None:
    heads = ["metric", "value", "standard error", "samples"]
    has_chance = any(metric.chance is not None for metric in one.metrics.values())
    rows = [
        [name, f"{metric.value:.4f}", _spread(metric.standard_error), str(metric.samples)]
        + [_spread(metric.chance)] * has_chance
        for name, metric in one.metrics.items()
    ]
    title = f"{one.set} (protocol {one.protocol_id})"
    table(f"{checkpoint}: {title}" if checkpoint else title, heads + ["chance"] * has_chance, rows)
    for note in one.notes:
        print(f"note: {note}")


def _spread(standard_error: float | None) -> str:
    return "" if standard_error is None else f"{standard_error:.4f}"
