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


def notes(plan: Plan, settings: Settings) -> list[str]:
    """What looks wrong about the text files of evaluation sets that are here, a sentence each."""
    from harness.data.synthetic.embedded import embedded_sets
    from harness.evaluation.layout import describe, locate

    found: dict[str, None] = {}
    for experiment in {id(run.experiment.evaluation): run.experiment for run in plan.runs.values()}.values():
        own = embedded_sets(experiment.data, settings.store / "data")
        for reference in on_this_machine(experiment.evaluation, settings.evaluation_root).sets:
            name, _ = parted(reference)
            try:
                path = locate(name, evaluation_root=settings.evaluation_root, embedded=own)
                notes = describe(path, split=experiment.evaluation.under(reference).split).notes
            except DataError:
                continue  # `problems` says it
            found |= dict.fromkeys(f"evaluation set {set_name(reference)}: {note}" for note in notes)
    return list(found)


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
