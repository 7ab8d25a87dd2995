"""Packages that open_clip imports if they are installed, and that most runs do not need: timm and transformers.

Their imports are a quarter of the start of a job. open_clip works without them: it catches the ImportError, and raises
an error only where a model needs one of them. `open_clip_alone` imports open_clip as if they were not installed. Python
documents how: a None in `sys.modules` makes the import of that name fail
(https://docs.python.org/3/reference/import.html#the-module-cache). Afterwards both can be imported as usual.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from harness.base.errors import HarnessError
from harness.base.files import read_json
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher
from harness.config.model import Model
from harness.runs.request import Request, read_request
from harness.runs.store import RunFolder

PACKAGES = ("timm", "transformers")


def may_need_packages(folder: Path) -> bool:
    """Whether the run in `folder` may need timm or transformers; true if that cannot be read."""
    try:
        run = RunFolder(folder)
        if '"python"' in json.dumps(read_json(run.request)):  # a part of the user's own may build any model
            return True
        return any(model.may_need_packages for model in _models(read_request(run)))
    except (HarnessError, OSError, ValueError):
        return True


def open_clip_alone() -> bool:
    """Import open_clip without timm and transformers; returns False if this version of it cannot do without.

    Nothing is imported if one of the three is there already.
    """
    if any(name in sys.modules for name in ("open_clip", *PACKAGES)):
        return False
    sys.modules.update(dict.fromkeys(PACKAGES))  # type: ignore[arg-type]
    try:
        importlib.import_module("open_clip")
    except ImportError:
        for name in [one for one in sys.modules if one.partition(".")[0] == "open_clip"]:
            del sys.modules[name]  # some have noted that the packages are absent
        return False
    finally:
        for name in PACKAGES:
            del sys.modules[name]
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
