"""A checkpoint as a model of mteb, and mteb's result files as references.

The tests against mteb itself run where it is installed: `pip install "harness[mteb]"`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.base.errors import SpecError
from harness.config.evaluation import Evaluation
from harness.config.model import Model
from harness.evaluation.evaluator import evaluate
from harness.evaluation.sets import EvaluationSet, read_set
from harness.models import Towers, build_towers
from harness.node.mteb_model import MtebModel
from harness.reporting.references import read_external
from tests.evaluation.test_start import CONFIG, weights
from tests.evaluation.worlds import classification_set, retrieval_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def towers() -> Towers:
    return build_towers(Model(name="tiny", config=CONFIG), seed=3).eval()


def test_features_are_those_of_an_evaluation(towers: Towers, tmp_path: Path) -> None:
    found = read_set(classification_set(tmp_path / "things"))
    model = MtebModel(towers, "tiny", CPU)
    pictures = [found.image(index) for index in range(6)]
    features = model.encode([{"image": pictures[:4]}, {"image": pictures[4:]}])
    with torch.inference_mode():
        expected = towers.encode_image(torch.stack([towers.preprocess(one) for one in pictures]))
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-6)
    texts = model.encode([{"text": ["a cat", "a dog"]}, {"text": ["a fox"]}])
    assert texts.shape == (3, 24)
    both = model.encode([{"text": ["a cat"], "image": pictures[:1]}])
    np.testing.assert_allclose(both, texts[:1] + features[:1], atol=1e-6)
    cosines = model.similarity(3 * features, texts)
    np.testing.assert_allclose(cosines, features @ texts.T, atol=1e-6)
    pairwise = model.similarity_pairwise(2 * features[:3], texts)
    np.testing.assert_allclose(pairwise, (features @ texts.T).diagonal(), atol=1e-6)
    with pytest.raises(SpecError, match="mteb gives audio, and a CLIP model encodes texts and images"):
        model.encode([{"audio": [1]}])


def result(folder: Path, task: str, scores: dict[str, Any], subset: str = "default") -> Path:
    place = folder / "harness__tiny" / "abc"
    place.mkdir(parents=True, exist_ok=True)
    (place / "model_meta.json").write_text("{}")
    rows = [{"hf_subset": subset, "languages": ["eng-Latn"], "main_score": 0.5, **scores}]
    text = {"task_name": task, "mteb_version": "2.26.24", "dataset_revision": "1", "scores": {"test": rows}}
    (place / f"{task}.json").write_text(json.dumps(text))
    return place / f"{task}.json"


@pytest.mark.parametrize(
    ("task", "scores", "expected"),
    [
        ("OxfordPetsZeroShot", {"accuracy": 0.5, "f1": 0.2}, {"pets/acc1": 0.5}),
        ("Unknown", {"accuracy": 0.5}, {"Unknown/acc1": 0.5}),
        (
            "Flickr30kI2TRetrieval",
            {"hit_rate_at_1": 0.25, "recall_at_1": 0.05, "accuracy": 0.25, "ndcg_at_10": 0.3},
            {"flickr30k/text_retrieval_recall@1": 0.25},
        ),
        ("MSCOCOT2IRetrieval", {"hit_rate_at_5": 0.4}, {"mscoco_captions/image_retrieval_recall@5": 0.4}),
        (
            "Winoground",
            {"text_acc": 0.3, "image_acc": 0.2, "accuracy": 0.1},
            {"winoground/text_acc": 0.3, "winoground/image_acc": 0.2, "winoground/acc": 0.1},
        ),
    ],
)
def test_result_files_are_references(
    task: str, scores: dict[str, float], expected: dict[str, float], tmp_path: Path
) -> None:
    found = read_external(result(tmp_path, task, scores))
    assert {one.metric: one.value for one in found} == expected
    assert {one.row for one in found} == {"harness/tiny"}
    assert found[0].source == f"mteb 2.26.24, {task}, test"
    assert "unknown: samples, templates, class names" in found[0].said


def test_what_is_no_reference_in_a_result_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds no numbers"):
        read_external(result(tmp_path, "STS12VisualSTS", {"cosine_spearman": 0.5}))
    with pytest.raises(SpecError, match=r"accuracy = 50\.0 is not a share"):
        read_external(result(tmp_path, "DTDZeroShot", {"accuracy": 50.0}))


def test_mteb_measures_what_we_measure(towers: Towers, tmp_path: Path) -> None:
    import mteb
    from mteb.cache import ResultCache

    things = read_set(classification_set(tmp_path / "things"))
    pictures = read_set(retrieval_set(tmp_path / "pictures"))
    spec = Evaluation(templates=("a photo of a {c}.",), recall_k=(1, 3, 5, 10))
    ours = {
        f"{one.evaluation.set}/{name}": metric.value
        for one in evaluate(towers, [things, pictures], spec, batch_size=8, device=CPU)
        for name, metric in one.evaluation.metrics.items()
    }
    model = MtebModel(towers, "tiny", CPU)
    tasks = [classified(things), retrieved(pictures, "I2T"), retrieved(pictures, "T2I")]
    cache = ResultCache(cache_path=tmp_path / "cache")
    mteb.evaluate(model, tasks, cache=cache, co2_tracker=False, show_progress_bar=False)
    files = list((tmp_path / "cache").rglob("Local*.json"))
    assert len(files) == 3
    theirs = {one.metric: one.value for file in files for one in read_external(file)}
    compared = {
        "things/acc1": "LocalZeroShot/acc1",
        **{f"pictures/text_retrieval_recall@{k}": f"LocalI2T/text_retrieval_recall@{k}" for k in (1, 3, 5, 10)},
        **{f"pictures/image_retrieval_recall@{k}": f"LocalT2I/image_retrieval_recall@{k}" for k in (1, 3, 5, 10)},
    }
    for name, other in compared.items():
        # mteb rounds the recalls that it writes to five digits
        assert theirs[other] == pytest.approx(ours[name], abs=1e-6 if "acc1" in name else 5.1e-6), name
    assert {one.row for file in files for one in read_external(file)} == {"harness/tiny"}


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mteb

    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    example = page.partition("### MIEB, with mteb")[2].partition("```python\n")[2].partition("```")[0]
    assert 3 <= len(example.splitlines()) <= 10
    things = read_set(classification_set(tmp_path / "things"))
    asked: list[list[str]] = []

    def get_tasks(tasks: list[str]) -> list[Any]:  # mteb's own download their data
        asked.append(tasks)
        return [classified(things)]

    monkeypatch.setattr(mteb, "get_tasks", get_tasks)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    weights(tmp_path, seed=0).rename(tmp_path / "clip.pt")
    exec(compile(example, "evaluation.md", "exec"), {})
    assert asked == [["CIFAR10ZeroShot", "Winoground"]]
    (file,) = tmp_path.glob("mteb/results/harness__clip/*/LocalZeroShot.json")
    assert [one.metric for one in read_external(file)] == ["LocalZeroShot/acc1"]


def classified(found: EvaluationSet) -> Any:
    """A task of mteb from the samples of a classification set."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskZeroShotClassification

    class Task(AbsTaskZeroShotClassification):
        metadata = about("LocalZeroShot", "ZeroShotClassification", "accuracy", "i2t")

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            columns = {"image": [found.image(index) for index in range(len(found))], "label": list(found.labels)}
            self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
            self.data_loaded = True

        def get_candidate_labels(self) -> list[str]:
            return [f"a photo of a {name}." for name in found.layout.classnames]

    return Task()


def retrieved(found: EvaluationSet, direction: str) -> Any:
    """A task of mteb from the samples of a retrieval set; its captions are distinct."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    owners = [index for index, captions in enumerate(found.captions) for _ in captions]
    texts = {"id": [f"t{i}" for i in range(len(owners))], "text": [one for some in found.captions for one in some]}
    images = {"id": [f"i{i}" for i in range(len(found))], "image": [found.image(i) for i in range(len(found))]}
    queries, corpus = (images, texts) if direction == "I2T" else (texts, images)
    relevant: dict[str, dict[str, int]] = {}
    for number, owner in enumerate(owners):
        pair = (f"i{owner}", f"t{number}")
        query, document = pair if direction == "I2T" else pair[::-1]
        relevant.setdefault(query, {})[document] = 1

    class Task(AbsTaskRetrieval):
        metadata = about(f"Local{direction}", "Any2AnyRetrieval", "ndcg_at_10", "i2t" if direction == "I2T" else "t2i")

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            split = RetrievalSplitData(
                queries=Dataset.from_dict(queries),
                corpus=Dataset.from_dict(corpus),
                relevant_docs=relevant,
                top_ranked=None,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Task()


def about(name: str, kind: str, score: str, category: str) -> Any:
    """mteb's description of a task that is made here."""
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="made for a test",
        dataset={"path": "local/made", "revision": "1"},
        type=kind,
        category=category,
        modalities=["image", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )
