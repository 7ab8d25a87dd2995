"""The teacher features that a spec's runs read, for `harness data features` and `harness data analyze`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.base.errors import SpecError
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.features import features_folder, wanted_by
from harness.features.compute import Extraction, Wanted
from harness.node.teacher_features import towers_of
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.identity import teacher_id
from harness.runs.planned import PlannedRun
from harness.runs.request import Request


@dataclass(frozen=True)
class FeatureSet:
    """A data set and one teacher's features of it, which runs of a plan read."""

    run: PlannedRun
    """One of the runs that read the features."""
    request: Request
    wanted: Wanted

    def extraction(self, device: torch.device, threads: int) -> Extraction:
        """Create the extraction that computes the features.

        Raises:
            SpecError: the teacher has not been trained.
            ModelError: its weights do not fit.
        """
        run = self.run.teacher
        if run is not None and not self.request.stored.run(run).weights.exists():
            fix = "train it first with `harness run SPEC`"
            raise SpecError(f"the teacher, run {run}, has not been trained", where="teacher", fix=fix)
        return Extraction(self.wanted, towers_of(self.request), device, threads)


def feature_sets(plan: Plan, project: Project, *, every_source: bool = False) -> list[FeatureSet]:
    """All teacher features that the runs of `plan` read, each pair of data set and teacher once.

    Args:
        every_source: include all caption sources of the data, not only those that runs use.

    Raises:
        SpecError: no run uses a teacher.
    """
    found: dict[tuple[str, bool], FeatureSet] = {}
    datasets: dict[str, Dataset] = {}
    for run in plan.runs.values():
        teacher = teacher_id(run.experiment, run.teacher)
        if teacher is None:
            continue
        request = Request.of(run.experiment, run.id, run.teacher, project.settings, threads=1)
        fingerprint = run.identity.fingerprint
        if fingerprint not in datasets:
            datasets[fingerprint] = open_dataset(run.experiment.data, project.store.data)
        folder = features_folder(project.store.features, fingerprint, teacher)
        wanted = wanted_by(folder, datasets[fingerprint], run.experiment.captions)
        key = str(folder), wanted.lower
        before = found[key].wanted.sources if key in found else ()
        more = datasets[fingerprint].sources if every_source else ()
        sources = tuple(dict.fromkeys([*before, *wanted.sources, *more]))
        found[key] = FeatureSet(run, request, Wanted(folder, datasets[fingerprint], sources, wanted.lower))
    if not found:
        fix = "add a [teacher], and a mining or a loss that uses it"
        raise SpecError("no run uses a teacher, so there are no features to compute", where=plan.name, fix=fix)
    return list(found.values())


def chosen_device(stated: str | None) -> torch.device:
    """The device with the stated name; by default a GPU if there is one, else the CPU.

    Raises:
        SpecError: there is no such device.
    """
    name = stated or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"cannot be used ({first})", where=f"--device {name}", fix="name cpu or cuda") from error
    return device
