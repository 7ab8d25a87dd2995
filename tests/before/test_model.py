"""The models and records that the old code has put into MLflow, used by the current code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.before.old import Harness, arms, planned, runs

LOADED = ("fff/0", "tokens/0")
INPUTS = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image

TEXTS = ["a red disc", "two blue squares beside each other"]
PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for seed in range(3)
]
store, out, chosen = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

def save(run, model):
    np.savez(out / f"{run}.npz", texts=model.predict(TEXTS), pictures=model.predict(PICTURES))
"""
FROM_WEIGHTS = f"""{INPUTS}
import json
from harness.models import build_towers, load_weights
from harness.spec.model import Model
from harness.tracking.model import Encoder

for folder in (store / "runs" / run for run in chosen):
    spec = json.loads((folder / "request.json").read_text())["experiment"]["model"]
    towers = build_towers(Model.model_validate(spec))
    load_weights(towers.model, folder / "weights.pt")
    towers.eval()
    save(folder.name, Encoder(towers))
"""
FROM_MLFLOW = f"""{INPUTS}
import mlflow

mlflow.set_tracking_uri(f"sqlite:///{{store}}/mlflow.db")
client = mlflow.MlflowClient()
for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
    if (name := run.data.tags.get("harness.run_id")) in chosen:
        save(name, mlflow.pyfunc.load_model(f"runs:/{{run.info.run_id}}/model"))
"""


@pytest.mark.slow
def test_logged_models_load_and_give_the_same_features(
    old: Harness, current: Harness, synced: Path, tmp_path: Path
) -> None:
    ids = arms(planned(old, synced))
    chosen = [ids[name] for name in LOADED]
    expected, found = tmp_path / "expected", tmp_path / "found"
    for folder, harness, code in ((expected, old, FROM_WEIGHTS), (found, current, FROM_MLFLOW)):
        folder.mkdir()
        harness.python(synced, code, str(synced), str(folder), *chosen)
    for name in chosen:
        features, straight = np.load(found / f"{name}.npz"), np.load(expected / f"{name}.npz")
        for kind in ("texts", "pictures"):
            assert np.array_equal(features[kind], straight[kind]), (name, kind)


@pytest.mark.slow
def test_a_sync_changes_nothing(current: Harness, synced: Path) -> None:
    said = current.command(synced, "sync", "ablation.toml", tracking="")
    assert f"0 runs imported, {len(runs(synced))} unchanged" in said
