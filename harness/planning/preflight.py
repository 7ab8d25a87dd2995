"""Check which data and evaluation sets of a valid spec are missing on this machine."""

from __future__ import annotations

from pathlib import Path

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.protocols import parted, set_name
from harness.planning.plan import Plan
from harness.runs.request import on_this_machine
from harness.runs.settings import Settings


def problems(plan: Plan, settings: Settings) -> list[str]:
    """What is missing, one sentence per problem."""
    found = list(plan.missing_data)
    different: dict[tuple[int, int], Experiment] = {}
    for run in plan.runs.values():  # arms share the objects of the sections that they do not change
        different.setdefault((id(run.experiment.data), id(run.experiment.evaluation)), run.experiment)
    for experiment in different.values():
        found += _missing_sets(experiment, settings)
    return list(dict.fromkeys(found))


def _missing_sets(experiment: Experiment, settings: Settings) -> list[str]:
    from harness.data.synthetic.embedded import embedded_sets

    own, spec = embedded_sets(experiment.data, settings.store / "data"), experiment.evaluation
    available = on_this_machine(spec, settings.evaluation_root)
    found = [sentence for reference in available.sets for sentence in _problem(reference, spec, own, settings)]
    absent = [set_name(reference) for reference in spec.references if reference not in available.sets]
    if absent:
        where = settings.evaluation_root or "no evaluation_root in harness.toml"
        found.append(
            f"evaluation sets of a suite or protocol ({where}): {', '.join(absent)}; their averages cannot be reported"
        )
    return found


def _problem(reference: str, spec: Evaluation, own: dict[str, Path], settings: Settings) -> list[str]:
    from harness.evaluation.layout import check_templates, describe, locate

    name, _ = parted(reference)
    try:
        if name not in own:
            found_at = locate(name, evaluation_root=settings.evaluation_root, embedded=own)
            check_templates(describe(found_at, split=spec.under(reference).split), spec.under(reference))
    except DataError as error:
        return [str(error)]
    return []
