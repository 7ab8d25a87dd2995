"""What a valid spec still lacks on this machine: data, evaluation sets."""

from __future__ import annotations

from harness.errors import DataError
from harness.plan import Plan
from harness.settings import Settings
from harness.spec.experiment import Experiment


def problems(plan: Plan, settings: Settings) -> list[str]:
    """What is missing, a sentence each."""
    found = list(plan.missing_data)
    different: dict[tuple[int, int], Experiment] = {}
    for run in plan.runs.values():  # arms share the objects of the sections that they do not change
        different.setdefault((id(run.experiment.data), id(run.experiment.evaluation)), run.experiment)
    for experiment in different.values():
        found += _missing_sets(experiment, settings)
    return list(dict.fromkeys(found))


def _missing_sets(experiment: Experiment, settings: Settings) -> list[str]:
    from harness.data.embedded import embedded_sets
    from harness.evaluate.layout import check_templates, describe, locate

    own = embedded_sets(experiment.data, settings.store / "data")
    found = []
    for reference in experiment.evaluation.sets:
        try:
            if reference not in own:
                found_at = locate(reference, evaluation_root=settings.evaluation_root, embedded=own)
                check_templates(describe(found_at), experiment.evaluation)
        except DataError as error:
            found.append(str(error))
    return found
