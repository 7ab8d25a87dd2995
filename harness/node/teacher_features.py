"""A run's teacher features, and its towers, which are built only if features are missing."""

from __future__ import annotations

import torch

from harness.config.experiment import ExperimentTeacher, OpenClipTeacher, unknown_teacher
from harness.config.model import Model
from harness.data.dataset.dataset import Dataset
from harness.features import TeacherFeatures, features_folder, teacher_features
from harness.models import Towers, build_towers, load_weights
from harness.runs.identity import teacher_id
from harness.runs.request import Request


def features_for(request: Request, dataset: Dataset, fingerprint: str, device: torch.device) -> TeacherFeatures | None:
    """The teacher features that the run of `request` reads; None if it uses no teacher.

    Raises:
        ModelError: the teacher's weights are missing or do not fit.
    """
    teacher = teacher_id(request.experiment, request.teacher_run)
    if teacher is None:
        return None
    folder = features_folder(request.stored.features, fingerprint, teacher)
    return teacher_features(folder, dataset, request.experiment.captions, lambda: towers_of(request), device)


def towers_of(request: Request) -> Towers:
    """Build the towers of the teacher of the run of `request`.

    Raises:
        ModelError: the teacher's weights are missing or do not fit, or its crop is larger than `teacher.resize`.
        StoreError: they were changed since the teacher's run ended.
    """
    towers = _built(request)
    if request.experiment.teacher is not None and request.experiment.teacher.resize is not None:
        towers.resize_first(request.experiment.teacher.resize)
    return towers


def _built(request: Request) -> Towers:
    match request.experiment.teacher:
        case ExperimentTeacher(experiment=experiment):
            towers, folder = build_towers(experiment.model), request.stored.run(str(request.teacher_run))
            folder.check_weights()
            load_weights(towers.model, folder.weights)
            return towers
        case OpenClipTeacher(model=name, weights=weights, config=config):
            return build_towers(Model(name=name, weights=weights, config=config))
        case None:
            raise AssertionError("only a run with a teacher asks for one")
        case _:
            raise unknown_teacher(request.experiment.teacher)
