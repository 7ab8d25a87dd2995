"""A job's start without timm and transformers: when it may, what it leaves as it was, and which runs get them back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.base.exit_status import DONE
from harness.base.open_clip_alone import open_clip_alone
from harness.config.model import Model
from harness.evaluation.cache import weights_digest
from harness.execute.local.optional_packages import may_need_packages
from harness.execute.local.processes import LocalWorkers
from harness.models import build_towers
from harness.runs.folder import RunFolder
from harness.runs.request import read_request
from tests.node.small import experiment, planned, prepared

PLAIN = ("tiny-vit", "tiny-resnet", "micro-resnet")
TIMM = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize(
    ("model", "needs"),
    [
        *[(Model(name=name), False) for name in (*PLAIN, "ViT-B-16", "RN50")],
        *[(Model(name=name), True) for name in ("tiny-coca", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "convnext_base")],
        (Model(name="own", config=TIMM), True),
        (Model(name="hf-hub:someone/something"), True),
        (Model(name="no-such-model"), True),
    ],
    ids=lambda one: one.name if isinstance(one, Model) else "",
)
def test_which_models_may_need_them(model: Model, needs: bool) -> None:
    assert model.may_need_packages is needs


def folder_of(tmp_path: Path, **changes: Any) -> RunFolder:
    return prepared(tmp_path, planned(tmp_path, experiment(**changes))[1])


def test_which_runs_may_need_them(tmp_path: Path) -> None:
    plain = folder_of(tmp_path)
    assert not may_need_packages(plain.path)
    request = json.loads(plain.request.read_text())
    alone = {key: one for key, one in request["experiment"].items() if key != "teacher"}
    parts: list[Any] = [
        {"loss": {"kind": "python", "path": "mine.py", "name": "Mine"}},
        {"teacher": {"kind": "open_clip", "model": "roberta-ViT-B-32", "weights": "laion2b_s12b_b32k"}},
        {"teacher": {"kind": "experiment", "experiment": alone | {"model": {"name": "tiny-coca"}}}},
        {"model": {"name": "convnext_base"}},
        "no experiment",
    ]
    for part in parts:
        experiment = request["experiment"] | part if isinstance(part, dict) else part
        plain.request.write_text(json.dumps(request | {"experiment": experiment}))
        assert may_need_packages(plain.path)
        if isinstance(part, dict) and "loss" not in part:
            read_request(plain)  # it is not the answer to a request that cannot be read
    plain.request.unlink()
    assert may_need_packages(plain.path)


def python(code: str, *words: str, path: Path | None = None) -> str:
    """What a fresh Python process prints."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


BUILT = """
import json, sys
from harness.base.open_clip_alone import open_clip_alone
assert open_clip_alone()
from harness import worker
assert not {"timm", "transformers"} & set(sys.modules)
from harness.config.model import Model
from harness.evaluation.cache import weights_digest
from harness.models import build_towers
towers = [build_towers(Model(name=name), seed=3) for name in sys.argv[1:]]
print(json.dumps([[weights_digest(one.model), one.transform_name] for one in towers]))
assert not {"timm", "transformers"} & set(sys.modules)
import timm, transformers
"""


def test_towers_are_the_same_without_them() -> None:
    towers = [build_towers(Model(name=name), seed=3) for name in PLAIN]
    assert json.loads(python(BUILT, *PLAIN)) == [[weights_digest(one.model), one.transform_name] for one in towers]


NEW_VERSION = """
import sys
from harness.base.open_clip_alone import open_clip_alone
assert not open_clip_alone()
import open_clip, timm
assert open_clip.optional.timm is timm
"""


def test_a_version_of_open_clip_that_cannot_do_without(tmp_path: Path) -> None:
    """What its modules noted of the first attempt is gone."""
    for name, text in {
        "timm": "",
        "transformers": "",
        "open_clip": "from . import optional\nimport transformers",
        "open_clip/optional": "try:\n    import timm\nexcept ImportError:\n    timm = None",
    }.items():
        file = tmp_path / (f"{name}.py" if "/" in name else f"{name}/__init__.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    python(NEW_VERSION, path=tmp_path)


def test_nothing_is_done_where_one_is_imported_already() -> None:
    before = dict(sys.modules)
    assert "open_clip" in before  # by the towers above, or any other test
    assert not open_clip_alone()
    assert {name: sys.modules.get(name) for name in ("open_clip", "timm", "transformers")} == {
        name: before.get(name) for name in ("open_clip", "timm", "transformers")
    }


@pytest.mark.slow
def test_a_run_that_needs_timm_after_one_that_does_not(tmp_path: Path) -> None:
    """The fork server of the first run has imported neither; the second run's process imports them itself."""
    plain = folder_of(tmp_path, teacher=None)
    needy = folder_of(tmp_path, teacher=None, model={"name": "timm", "config": TIMM})
    workers = LocalWorkers(1, 1)
    try:
        for folder in (plain, needy):
            workers.start(folder.path)
            assert _end(workers) == DONE, folder.log.read_text()
            assert folder.record().evaluations
    finally:
        workers.close()


def _end(workers: LocalWorkers) -> int:
    for _ in range(600):
        for ended in workers.ended(1.0):
            return ended.status
    raise AssertionError("the worker has not ended")
