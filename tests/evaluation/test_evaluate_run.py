"""Whole evaluations: against clip-benchmark's own, and without a trace in the training."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch import Tensor

from harness.base.errors import DataError, StoreError, TrainingError
from harness.config.evaluation import Evaluation
from harness.evaluation.evaluator import Evaluator, Result, evaluate
from harness.evaluation.outcomes import read_outcomes, write_outcomes
from harness.evaluation.sets import read_set
from harness.runs import record

from .worlds import TinyClip, classification_files, classification_set, picture, retrieval_set, write_set

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:WebDataset:UserWarning", "ignore:Conversion:DeprecationWarning")


@pytest.fixture(scope="module")
def classification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classification_set(tmp_path_factory.mktemp("sets") / "things")


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retrieval_set(tmp_path_factory.mktemp("sets") / "pictures")


def loader(path: Path, model: TinyClip, task: str, batch_size: int) -> Any:
    dataset = build_dataset("wds/tiny", root=str(path), transform=model.preprocess, split="test", task=task)
    return torch.utils.data.DataLoader(dataset.batched(batch_size), batch_size=None, shuffle=False, num_workers=0)


def run(model: TinyClip, *paths: Path, batch_size: int = 7, **spec: Any) -> tuple[Result, ...]:
    return evaluate(model, [read_set(path) for path in paths], Evaluation(**spec), batch_size=batch_size, device=CPU)


def evaluator(model: TinyClip, *paths: Path, **options: Any) -> Evaluator:
    return Evaluator(model, [read_set(path) for path in paths], Evaluation(), batch_size=7, device=CPU, **options)


def values(result: Result) -> dict[str, float]:
    return {name: metric.value for name, metric in result.evaluation.metrics.items()}


@pytest.mark.parametrize("classes", [3, 6])
def test_classification_equals_clip_benchmark(tmp_path: Path, classes: int) -> None:
    path = classification_set(tmp_path / "tiny", classes=classes)
    model = TinyClip().eval()
    ours = values(run(model, path)[0])
    batches = loader(path, model, "zeroshot_classification", 5)
    theirs = zeroshot_classification.evaluate(
        model, batches, model.tokenizer, batches.dataset.classes, batches.dataset.templates, "cpu", amp=False
    )
    assert ours == pytest.approx({name: value for name, value in theirs.items() if not np.isnan(value)}, abs=1e-6)
    assert ("acc5" in ours) == (classes >= 5)


def test_retrieval_equals_clip_benchmark(retrieval: Path) -> None:
    model = TinyClip().eval()
    ours = values(run(model, retrieval, recall_k=(1, 3, 5, 10))[0])
    batches = loader(retrieval, model, "zeroshot_retrieval", 5)
    theirs = zeroshot_retrieval.evaluate(model, batches, model.tokenizer, "cpu", amp=False, recall_k_list=[1, 3, 5, 10])
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0 < ours["image_retrieval_recall@5"] < 1


def test_batches_do_not_matter(classification: Path, retrieval: Path) -> None:
    one, other = (run(TinyClip(), classification, retrieval, batch_size=size) for size in (1, 100))
    for left, right in zip(one, other, strict=True):
        assert left.evaluation == right.evaluation


def test_each_image_is_encoded_once(classification: Path, retrieval: Path) -> None:
    model = TinyClip()
    run(model, classification, retrieval)
    assert model.images_seen == 24 + 22


def test_sets_of_the_same_prompts_share_a_classifier(classification: Path, tmp_path: Path) -> None:
    other = classification_set(tmp_path / "things again", shards=1)
    alone, both = TinyClip(), TinyClip()
    run(alone, classification)
    run(both, classification, other)
    assert both.texts_seen == alone.texts_seen == 6 * 3


def test_recall_beyond_the_candidates_is_left_out(retrieval: Path) -> None:
    metrics = run(TinyClip(), retrieval, recall_k=(1, 23, 43, 44))[0].evaluation.metrics
    assert set(metrics) == {
        "image_retrieval_recall@1",
        "text_retrieval_recall@1",
        "text_retrieval_recall@23",
        "text_retrieval_recall@43",
    }


def global_random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index]


def trace(model: TinyClip) -> tuple[Any, ...]:
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return modes, weights, torch.get_float32_matmul_precision(), torch.is_inference_mode_enabled()


class Drawing(TinyClip):
    """A model that draws random numbers even when it only evaluates."""

    def encode_image(self, images: Tensor, /) -> Tensor:
        return super().encode_image(images + 0 * torch.rand_like(images))


class Diverged(TinyClip):
    """A model with one NaN."""

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        features = super().encode_text(tokens)
        features[-1, 0] = torch.nan
        return features


@pytest.mark.parametrize("kind", [Drawing, Diverged])
def test_training_goes_on_as_if_nothing_had_happened(
    kind: type[TinyClip], classification: Path, retrieval: Path
) -> None:
    model = kind().train()
    model.clip.visual.eval()  # a frozen tower stays as it is
    torch.set_float32_matmul_precision("medium")
    try:
        random_state, before = global_random_state(), trace(model)
        measure = evaluator(model, classification, retrieval)
        if kind is Diverged:
            with pytest.raises(TrainingError, match="text features are not finite"):
                measure()
        else:
            measure()
        assert global_random_state() == random_state
        assert trace(model) == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_dropout_and_batch_norm_are_off(classification: Path) -> None:
    model = TinyClip().train()
    assert values(run(model, classification)[0]) == values(run(model.eval(), classification)[0])


def test_a_step_between_two_evaluations_shows(classification: Path) -> None:
    model = TinyClip().train()
    measure = evaluator(model, classification)
    start = measure()[0].outcomes.columns["rank"]
    model.encode_image(torch.rand(2, 3, 32, 32)).sum().backward()  # type: ignore[no-untyped-call]
    optimiser = torch.optim.SGD(model.parameters(), lr=10.0)
    optimiser.step()
    kept, fresh = measure()[0], evaluator(model, classification)()[0]
    assert kept.evaluation == fresh.evaluation
    assert (kept.outcomes.columns["rank"] != start).any()


def test_small_sets_are_decoded_once(tmp_path: Path) -> None:
    path = classification_set(tmp_path / "things")
    keeping, forgetting = evaluator(TinyClip(), path), evaluator(TinyClip(), path, cache_bytes=24 * 3 * 32 * 32 * 4 - 1)
    before = values(keeping()[0])
    assert values(forgetting()[0]) == before
    for shard in (path / "test").glob("*.tar"):
        shard.write_bytes(b"")
    assert values(keeping()[0]) == before
    with pytest.raises(DataError, match="cannot be decoded"):
        forgetting()


def test_bfloat16_is_autocast_for_the_towers_alone(classification: Path) -> None:
    dtypes = []

    class Watching(TinyClip):
        def encode_image(self, images: Tensor, /) -> Tensor:
            features = super().encode_image(images)
            dtypes.append(features.dtype)
            return features

    low = run(Watching(), classification, precision="bfloat16")[0]
    high = run(Watching(), classification)[0]
    assert dtypes == [torch.bfloat16] * 4 + [torch.float32] * 4
    assert low.evaluation.protocol_id != high.evaluation.protocol_id


class Recording(TinyClip):
    """Remembers what it was asked to tokenize."""

    def tokenize(self, texts: list[str]) -> Tensor:
        self.asked = [*getattr(self, "asked", []), *texts]
        return super().tokenize(texts)


def test_prefix_and_normalisation_reach_the_tokenizer(classification: Path, retrieval: Path) -> None:
    model = Recording()
    spec: dict[str, Any] = {"prefix": "A Photo of", "text_normalisation": "lowercase", "templates": ("The {c}",)}
    run(model, classification, retrieval, **spec)
    assert model.asked[:2] == ["the thing number 0", "the thing number 1"]
    assert model.asked[6] == "a photo of caption 0 of picture 0"


def test_outcomes_carry_the_numbers(classification: Path, retrieval: Path, tmp_path: Path) -> None:
    for result in run(TinyClip(), classification, retrieval):
        write_outcomes(tmp_path / result.evaluation.set, result.outcomes)
        (file,) = (tmp_path / result.evaluation.set).iterdir()
        outcomes = read_outcomes(file)
        assert (outcomes.set, outcomes.task) == (result.evaluation.set, result.evaluation.task)
        assert outcomes.protocol_id == result.evaluation.protocol_id
        rank, metrics = outcomes.columns["rank"], values(result)
        if outcomes.task == "zeroshot_classification":
            correct = outcomes.columns["label"] == outcomes.columns["prediction"]
            assert (correct == (rank == 1)).all()
            assert metrics["acc1"] == correct.mean()
            assert metrics["acc5"] == (rank <= 5).mean()
            assert outcomes.columns["key"][0] == "s0000000"
            continue
        for direction, k in [("image_retrieval", 5), ("text_retrieval", 10)]:
            rows = outcomes.columns["direction"] == direction
            assert metrics[f"{direction}_recall@{k}"] == (rank[rows] <= k).mean()
        keys, caption = outcomes.columns["key"], outcomes.columns["caption"]
        assert list(zip(keys, caption, strict=True))[:4] == [
            ("s0000000", 0),
            ("s0000001", 0),
            ("s0000001", 1),
            ("s0000002", 0),
        ]
        assert (caption[-22:] == -1).all()


def test_outcomes_have_the_documented_schema(classification: Path, retrieval: Path, tmp_path: Path) -> None:
    vectors = [[1, 0, 1], [0, 0, 0]]
    members: list[tuple[str, bytes]] = []
    for index, vector in enumerate(vectors):
        stream = io.BytesIO()
        np.save(stream, np.array(vector))
        members += [(f"m{index}.npy", stream.getvalue()), (f"m{index}.png", picture(index))]
    files = classification_files(3) | {"dataset_type.txt": "multilabel"}
    several = write_set(tmp_path / "several", [members], files)
    pair = [("a.png", picture(0)), ("a.txt", b"one\ntwo")]
    pairs = write_set(tmp_path / "pairs", [pair], {"dataset_type.txt": "image_caption_selection"})
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text().partition("## Outcomes of single")[2]
    rows = [line.split("|") for line in page.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    stated = {row[1].strip(): re.findall(r"`(\w+)`", row[2]) for row in rows}
    of = {
        classification: "classification, linear probe",
        several: "multi-label",
        retrieval: "retrieval",
        pairs: "pair task",
    }
    for path, row in of.items():
        (found,) = run(TinyClip().eval(), path)
        write_outcomes(tmp_path / "outcomes", found.outcomes)
        (file,) = (tmp_path / "outcomes").glob(f"{path.name}.*.parquet")
        schema = pq.read_schema(file)
        assert schema.names == stated[row]
        for name, kind in zip(schema.names, schema.types, strict=True):
            texts, truths = ("key", "category", "direction"), ("found_texts", "found_images")
            assert str(kind) == ("string" if name in texts else "bool" if name in truths else "int64")
        assert {key.decode() for key in schema.metadata} == {"set", "task", "protocol_id"}
        assert all(column.null_count == 0 for column in pq.read_table(file).columns)


def test_outcomes_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="evaluate again"):
        read_outcomes(file)


def test_the_record_survives_json(classification: Path, retrieval: Path) -> None:
    for result in run(TinyClip(), classification, retrieval):
        text = result.evaluation.model_dump_json()
        assert record.EvaluationResult.model_validate_json(text) == result.evaluation
