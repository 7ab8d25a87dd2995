"""What an evaluation with known numbers or features imports, and that its numbers are those of the model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.files import read_json
from harness.config.evaluation import Evaluation
from harness.execute.evaluate import evaluation_of, sources_of
from harness.models import build_towers, load_weights
from harness.node.checkpoint_evaluation import CheckpointEvaluation
from harness.node.known_results import KnownResults
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.evaluation.worlds import (
    TEXT,
    VISION,
    classification_members,
    classification_set,
    retrieval_members,
    retrieval_set,
    write_set,
)

CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
HEAVY = ("torch", "open_clip", "torchvision", "timm", "transformers", "pyarrow")
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


SETS = 'sets = ["./things", "./pictures"]'


def evaluated(folder: Path, asked: str = SETS) -> tuple[Any, str]:
    """The results of `harness eval` on both sets, and the last line of its log."""
    (folder / "asked.toml").write_text(f"[evaluation]\n{asked}\n")
    command = ["eval", "tiny=weights.pt", "--model", "tiny.json", "--spec", "asked.toml"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *command, "--out", "out.json"],
        cwd=folder,
        env=os.environ | {"HARNESS_STORE": "store", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads((folder / "out.json").read_text())["tiny"], done.stderr.strip().splitlines()[-1]


def in_this_process(folder: Path) -> list[dict[str, Any]]:
    """The results of the API, in a store of their own."""
    settings = Settings(store=folder / "another store", tracking_uri="none")
    one = sources_of(Project(settings, Store(settings.store)), [str(folder / "weights.pt")], str(folder / "tiny.json"))
    spec = Evaluation(sets=(str(folder / "things"), str(folder / "pictures")))
    (source,) = one.values()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [found.model_dump(mode="json") for found in source.measure(spec, processes=1)]
    finally:
        torch.set_num_threads(threads)


def metrics_of(results: list[dict[str, Any]]) -> list[Any]:
    """All that was measured, and how."""
    return [(one["set"], one["metrics"], one["protocol_id"], one["weights"]) for one in results]


def test_known_numbers_need_no_torch_and_known_features_no_vision_packages(tmp_path: Path) -> None:
    classification_set(tmp_path / "things")
    retrieval_set(tmp_path / "pictures")
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    weights(tmp_path, seed=0)
    settle(tmp_path)
    first, loaded = evaluated(tmp_path)
    assert loaded == "['torch', 'open_clip', 'torchvision']"
    assert metrics_of(first) == metrics_of(in_this_process(tmp_path))  # which has imported timm and transformers
    again, loaded = evaluated(tmp_path)
    assert loaded == "[]"
    assert again == first
    shutil.copytree(tmp_path / "store", tmp_path / "as it was")
    (tmp_path / "mine.py").write_text(MINE)
    more, loaded = evaluated(tmp_path, MORE)
    assert loaded == "[]"
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "as it was", tmp_path / "store")
    for kept in ("results", "measured"):
        shutil.rmtree(tmp_path / "store" / "evaluation" / kept)
    again, loaded = evaluated(tmp_path, MORE)
    assert loaded == "['torch']"
    assert again == more
    assert {"acc1", "Distance"} <= {name for one in more for name in one["metrics"]}


MORE = f"""{SETS}
recall_k = [2, 3]
feature_metrics = ["alignment", "modality_gap", "image_uniformity", "text_uniformity"]
metrics = [{{ kind = "python", file = "mine.py", name = "Distance" }}]"""
MINE = """
from typing import ClassVar
from harness.evaluation.own import MetricSpec, SampleMetric

class Distance(SampleMetric):
    class Parameters(MetricSpec):
        task: ClassVar = "zeroshot_retrieval"
    def values(self, found):
        images, captions = found.arrays
        return ((images[found.owner] - captions) ** 2).sum(axis=1) ** 0.5
"""
NEEDS_LOGITS = """
from typing import ClassVar
from harness.evaluation.own import EvaluationMetric, Metric, MetricSpec

class Highest(EvaluationMetric):
    class Parameters(MetricSpec):
        task: ClassVar = "zeroshot_classification"
    def measured(self, found):
        return Metric(value=float(found.logits.max()), samples=len(found.ranks))
"""


def settle(folder: Path) -> None:
    """Let the sets be old enough for what they contain to be remembered."""
    time.sleep(max(0.0, 10.5 + max(os.stat(file).st_ctime for file in folder.rglob("*.tar")) - time.time()))


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownResults:
    """A weights file whose numbers on two sets were measured; every state of a file counts as settled."""
    monkeypatch.setattr("harness.evaluation.contents.SETTLED_S", -60.0)
    classification_set(tmp_path / "things")
    retrieval_set(tmp_path / "pictures")
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    return kept(tmp_path, weights(tmp_path, seed=0), SPEC)


SPEC = Evaluation(sets=("things", "pictures"), recall_k=(1, 30))  # which 22 pictures do not define for captions


def kept(folder: Path, file: Path, spec: Evaluation) -> KnownResults:
    settings = Settings(store=folder / "store", evaluation_root=folder)
    (source,) = sources_of(Project(settings, Store(folder / "store")), [str(file)], str(folder / "tiny.json")).values()
    source.measure(spec, processes=1)
    return KnownResults(source.request, source.model, source.weights)


def test_known_numbers_are_those_that_were_measured(known: KnownResults, tmp_path: Path) -> None:
    shutil.rmtree(known.request.stored.evaluation_features / "measured")
    found = known.read(SPEC)
    experiment = known.request.experiment.model_copy(update={"evaluation": SPEC})
    request = known.request.model_copy(update={"experiment": experiment})
    measured = CheckpointEvaluation(request=request, model=known.model, weights=known.weights).carried_out()
    assert tuple(found[reference] for reference in SPEC.sets) == measured
    assert "image_retrieval_recall@30" in measured[1].undefined


@pytest.mark.parametrize(
    "spec",
    [
        SPEC.model_copy(update={"text_normalisation": "lowercase"}),
        SPEC.model_copy(update={"precision": "bfloat16"}),
        SPEC.model_copy(update={"sets": ("things@lowercase", "pictures@lowercase")}),
        Evaluation(sets=("nothing",)),
    ],
)
def test_under_other_conditions_nothing_is_known(known: KnownResults, spec: Evaluation) -> None:
    assert known.read(spec) == {}


def test_what_a_number_depends_on(known: KnownResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known.read(SPEC.model_copy(update={"templates": ("{c}",)})).keys() == {"pictures"}
    fewer = known.read(SPEC.model_copy(update={"recall_k": (1,)}))["pictures"]
    assert fewer.metrics.keys() == {"image_retrieval_recall@1", "text_retrieval_recall@1"}
    for function in ("code", "place"):
        with monkeypatch.context() as changed:
            changed.setattr(f"harness.node.known_measurements.{function}", lambda: "another")
            assert known.read(SPEC) == {}
    before = known.read(SPEC)
    weights(tmp_path, seed=1)
    assert known.read(SPEC) == {}
    assert kept(tmp_path, tmp_path / "weights.pt", SPEC).read(SPEC)["things"].weights != before["things"].weights
    weights(tmp_path, seed=0)
    assert known.read(SPEC) == before
    (tmp_path / "pictures" / "test" / "0.tar").touch()
    assert known.read(SPEC).keys() == {"things"}


def test_only_what_is_not_known_is_measured(
    known: KnownResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known.read(SPEC)
    retrieval_set(tmp_path / "others")
    asked: list[tuple[str, ...]] = []
    carried_out = CheckpointEvaluation.carried_out

    def noted(self: CheckpointEvaluation, world: Any = None) -> Any:
        asked.append(self.request.experiment.evaluation.sets)
        return carried_out(self, world)

    monkeypatch.setattr(CheckpointEvaluation, "carried_out", noted)
    settings = Settings(store=tmp_path / "store", evaluation_root=tmp_path)
    project = Project(settings, Store(tmp_path / "store"))
    (source,) = sources_of(project, [str(tmp_path / "weights.pt")], str(tmp_path / "tiny.json")).values()
    found = source.measure(SPEC.model_copy(update={"sets": ("things", "others", "pictures")}), processes=1)
    assert asked == [("others",)]
    assert [one.set for one in found] == ["things", "others", "pictures"]
    assert found[0] == before["things"]


def test_damaged_numbers_are_measured_again(known: KnownResults, capsys: pytest.CaptureFixture[str]) -> None:
    for file in known.request.stored.evaluation_features.glob("results/*.json"):
        file.write_text(
            file.read_text().replace('"samples": 24', '"samples": 25').replace('"samples": 22', '"samples": 21')
        )
    before = capsys.readouterr().err
    found = known.read(SPEC)
    assert (found["things"].metrics["acc1"].samples, found["pictures"].metrics["text_retrieval_recall@1"].samples) == (
        24,
        22,
    )
    assert (before + capsys.readouterr().err).count("is damaged: its set is measured again") == 2


WORLDS = {"things": "acc1", "things@linear_probe": "lp_acc1", "pictures": "alignment", "pairs": "text_acc"}


@pytest.mark.parametrize("reference", WORLDS)
def test_metrics_of_what_was_measured_are_those_of_an_evaluation(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.evaluation.contents.SETTLED_S", -60.0)
    write_set(classification_set(tmp_path / "things"), [classification_members([*range(6)] * 5, 50)], {}, "train")
    captions = [retrieval_members([["a", "b"], ["c", "a"], ["b"], ["a", "d"], ["e"]])]  # some are equal
    write_set(tmp_path / "pictures", captions, {"dataset_type.txt": "retrieval"})
    pairs = [retrieval_members([["a cat", "a dog"], ["one", "two"], ["red", "blue"]])]
    write_set(tmp_path / "pairs", pairs, {"dataset_type.txt": "image_caption_selection"})
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    spec = Evaluation(sets=(reference,), recall_k=(1,), feature_metrics=("modality_gap",))
    known = kept(tmp_path, weights(tmp_path, seed=0), spec)
    (tmp_path / "mine.py").write_text(MINE)
    other = {"kind": "python", "file": str(tmp_path / "mine.py"), "name": "Distance"}
    wider = Evaluation.model_validate(
        {**dict(spec), "recall_k": (3, 1), "feature_metrics": ("alignment",), "metrics": [other]}
    )
    shutil.rmtree(known.request.stored.evaluation_features / "results")  # of other tasks, no metric is new
    found = known.read(wider)[reference]
    experiment = known.request.experiment.model_copy(update={"evaluation": wider})
    request = known.request.model_copy(update={"experiment": experiment})
    (expected,) = CheckpointEvaluation(request=request, model=known.model, weights=known.weights).carried_out()
    assert found == expected
    assert WORLDS[reference] in found.metrics
    assert known.read(wider)[reference] == found


def test_a_metric_of_logits_and_damaged_files_need_an_evaluation(
    known: KnownResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logits.py").write_text(NEEDS_LOGITS)
    metric = {"kind": "python", "file": str(tmp_path / "logits.py"), "name": "Highest"}
    spec = Evaluation.model_validate({**dict(SPEC), "metrics": [metric]})
    assert known.read(spec).keys() == {"pictures"}
    assert "Highest" in kept(tmp_path, tmp_path / "weights.pt", spec).read(spec)["things"].metrics
    folder = known.request.stored.evaluation_features
    for features in folder.glob("*.npy"):
        features.unlink()
    assert known.read(SPEC.model_copy(update={"feature_metrics": ("alignment",)})).keys() == {"things"}
    assert known.read(SPEC.model_copy(update={"recall_k": (2,)})).keys() == {"things", "pictures"}
    for file in folder.glob("measured/*.npz"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert known.read(SPEC.model_copy(update={"recall_k": (3,)})).keys() == {"things"}  # whose numbers are known
    assert "is damaged: pictures is measured again" in capsys.readouterr().err


def evaluation(folder: Path, file: Path, name: str) -> CheckpointEvaluation:
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
