"""A run's model in MLflow is one that can be loaded back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import TrackingError
from harness.config.ablation import Ablation
from harness.config.model import Model
from harness.models import build_towers
from harness.planning.plan import make_plan
from harness.runs.store import Store
from harness.tracking import sync
from harness.training.checkpoint import save_weights
from tests.node.small import CONFIG, experiment
from tests.tracking.world import DATA, PLANNED, finish

TEXTS = ["a red disc", "two blue squares beside each other"]


@pytest.mark.slow
def test_the_first_seeds_model_loads_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    table = {"question": "?", "baseline": "a", "arms": {"a": {}}, "seeds": 2, "primary": "shapes/acc1"}
    ablation = Ablation.model_validate({**table, "experiment": experiment()})
    plan = make_plan(ablation, name="small", where="made.toml", inspect=lambda _: DATA)
    PLANNED.update(plan.runs)
    store, uri = Store(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db"
    towers = build_towers(Model.model_validate({"name": "small", "config": CONFIG}), seed=5)
    for seed in range(2):
        folder = store.run(plan.cells["a", seed])
        folder.path.mkdir(parents=True)
        save_weights(folder.weights, towers.model)
        finish(folder, plan, seed=seed)  # seals the weights
    for again in (False, True):
        sync(plan, store, uri, again=again)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id])  # type: ignore[union-attr]
    held = {run.data.tags["harness.run_id"]: run for run in runs if "harness.run_id" in run.data.tags}
    with_model = [key for key, run in held.items() if [f for f in client.list_artifacts(run.info.run_id) if f.is_dir]]
    assert with_model == [plan.cells["a", 0]]
    assert list(store.run(plan.cells["a", 0]).path.glob(".mlflow-*")) == []

    store.run(plan.cells["a", 0]).weights.unlink()  # what is loaded is MLflow's own copy
    loaded = mlflow.pyfunc.load_model(f"runs:/{held[with_model[0]].info.run_id}/model").get_raw_model()
    towers.eval()
    picture = Image.new("RGB", (40, 30), (200, 30, 30))
    expected = towers.encode_text(towers.tokenize(TEXTS)).detach().numpy()
    assert np.array_equal(loaded.encode_text(loaded.tokenize(TEXTS)).detach().numpy(), expected)
    assert loaded.preprocess(picture).shape == (3, 32, 32)


@pytest.mark.slow
def test_predict_encodes_texts_and_pictures_and_nothing_else(tmp_path: Path) -> None:
    from harness.tracking.model import Encoder

    towers = build_towers(Model.model_validate({"name": "small", "config": CONFIG})).eval()
    encoder = Encoder(towers)
    assert encoder.predict(TEXTS).shape == (2, 16)
    pictures = encoder.predict([Image.new("RGB", (40, 30)), Image.new("RGB", (20, 30))])
    assert np.allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-6)
    with pytest.raises(TrackingError, match="list of texts or of PIL images"):
        encoder.predict([1, 2])  # type: ignore[arg-type]
