"""Which runs may need timm or transformers. A job whose first run needs neither starts without them."""

from __future__ import annotations

import json
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import read_json
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher
from harness.config.model import Model
from harness.runs.folder import RunFolder
from harness.runs.request import Request, read_request


def may_need_packages(folder: Path) -> bool:
    """Whether the run in `folder` may need timm or transformers; true if that cannot be read."""
    try:
        run = RunFolder(folder)
        if '"python"' in json.dumps(read_json(run.request)):  # a part of the user's own may build any model
            return True
        return any(model.may_need_packages for model in _models(read_request(run)))
    except (HarnessError, OSError, ValueError):
        return True


def _models(request: Request) -> list[Model]:
    experiment: Experiment = request.experiment
    match experiment.teacher:
        case None:
            return [experiment.model]
        case ExperimentTeacher(experiment=teacher):
            return [experiment.model, teacher.model]
        case OpenClipTeacher(model=name, config=config):
            return [experiment.model, Model(name=name, config=config)]
