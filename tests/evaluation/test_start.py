"""What an evaluation with known features imports, and that its numbers are those of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.files import read_json
from harness.models import build_towers, load_weights
from harness.node.checkpoint_evaluation import CheckpointEvaluation
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.evaluation.worlds import TEXT, VISION, classification_set, retrieval_set

CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
HEAVY = ("open_clip", "torchvision", "timm", "transformers", "pyarrow")
COMMAND = f"""
import sys
from harness.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def weights(folder: Path, seed: int) -> Path:
    from harness.config.model import Model

    towers = build_towers(Model(name="tiny", config=CONFIG), seed=seed)
    torch.save(towers.model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def evaluated(folder: Path) -> tuple[Any, str]:
    """The results of `harness eval` on both sets, and the last line of its log."""
    command = ["eval", "tiny=weights.pt", "--model", "tiny.json", "--suite", "./things", "--suite", "./pictures"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *command, "--out", "out.json"],
        cwd=folder,
        env=os.environ | {"HARNESS_STORE": "store", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads((folder / "out.json").read_text())["tiny"], done.stderr.strip().splitlines()[-1]


def test_known_features_need_no_vision_packages(tmp_path: Path) -> None:
    classification_set(tmp_path / "things")
    retrieval_set(tmp_path / "pictures")
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    weights(tmp_path, seed=0)
    first, loaded = evaluated(tmp_path)
    assert "open_clip" in loaded
    again, loaded = evaluated(tmp_path)
    assert loaded == "[]"
    assert again == first


def evaluation(folder: Path, file: Path, name: str) -> CheckpointEvaluation:
    from harness.execute.evaluate import evaluation_of, sources_of

    settings = Settings(store=folder / "store", evaluation_root=folder)
    (source,) = sources_of(Project(settings, Store(folder / "store")), [str(file)], str(folder / "tiny.json")).values()
    experiment = source.request.experiment.model_copy(update={"evaluation": evaluation_of([name], [])})
    request = source.request.model_copy(update={"experiment": experiment})
    return CheckpointEvaluation(request=request, model=source.model, weights=source.weights)


def test_other_weights_and_new_sets_are_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classification_set(tmp_path / "things")
    retrieval_set(tmp_path / "pictures")
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    file = weights(tmp_path, seed=0)
    (one,) = evaluation(tmp_path, file, "things").carried_out()
    (other,) = evaluation(tmp_path, file, "pictures").carried_out()  # towers are built although the weights are known
    fresh = evaluation(tmp_path, file, "pictures").model_copy()
    towers = build_towers(fresh.model)
    load_weights(towers.model, file)
    from harness.node.run_evaluation import RunEvaluation

    (expected,) = RunEvaluation(fresh.request, towers, torch.device("cpu")).measured(["pictures"])
    assert other == expected
    (note,) = (tmp_path / "store" / "evaluation" / "weights").glob("*.json")
    weights(tmp_path, seed=1)
    (changed,) = evaluation(tmp_path, file, "things").carried_out()
    assert changed.weights != one.weights
    note.write_text(json.dumps({**read_json(note), "weights": "0" * 64}))
    weights(tmp_path, seed=0)
    (again,) = evaluation(tmp_path, file, "things").carried_out()
    assert again == one
    assert "is damaged" in capsys.readouterr().err
