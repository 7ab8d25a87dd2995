"""Mean average precision against clip-benchmark and scikit-learn, and a multi-label set from disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation
from harness.evaluation.evaluator import evaluate
from harness.evaluation.multilabel import average_precisions, first_hits
from harness.evaluation.sets import read_set
from tests.evaluation.worlds import Member, TinyClip, classification_files, picture, write_set

CLASSES = 5


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), images=st.integers(1, 40))
def test_average_precision_is_theirs(seed: int, images: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.permutation(images * CLASSES).reshape(images, CLASSES)).float()  # no ties
    targets = torch.from_numpy(random.random((images, CLASSES)) < 0.3)
    ours = average_precisions(logits, targets)
    assert ours == pytest.approx(zeroshot_classification.average_precision_per_class(logits, targets), abs=1e-6)
    for column in range(CLASSES):
        if targets[:, column].any():
            expected = average_precision_score(targets[:, column], logits[:, column])
            assert float(ours[column]) == pytest.approx(expected, abs=1e-9)


def test_equal_logits_rank_by_index() -> None:
    logits, targets = torch.zeros(3, 2), torch.tensor([[True, False], [False, False], [False, True]])
    assert average_precisions(logits, targets).tolist() == pytest.approx([1.0, 1 / 3])
    predictions, ranks = first_hits(logits, targets)
    assert predictions.tolist() == [0, 0, 0]
    assert ranks.tolist() == [1, 0, 2]


def vector(*labels: float) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(labels))
    return stream.getvalue()


def several(path: Path, images: int = 12) -> Path:
    targets = np.random.default_rng(5).integers(0, 2, (images, CLASSES))
    members: list[Member] = []
    for i, row in enumerate(targets):
        members += [(f"s{i:03d}.png", picture(i)), (f"s{i:03d}.npy", vector(*row))]
    return write_set(path, [members], {**classification_files(CLASSES), "dataset_type.txt": "multilabel"})


def test_a_set_from_disk_measures_as_clip_benchmark(tmp_path: Path) -> None:
    path, model = several(tmp_path / "voc"), TinyClip().eval()
    dataset = build_dataset("wds/voc", root=str(path), transform=model.preprocess, split="test")
    loader = torch.utils.data.DataLoader(dataset.batched(4), batch_size=None)
    loader.dataset.classes = dataset.classes  # type: ignore[attr-defined]
    theirs = zeroshot_classification.evaluate(
        model, loader, model.tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )
    (ours,) = evaluate(model, [read_set(path)], Evaluation(), batch_size=4, device=torch.device("cpu"))
    value = ours.evaluation.metrics["mean_average_precision"].value
    assert value == pytest.approx(theirs["mean_average_precision"], abs=1e-6)
    assert ours.evaluation.task == "zeroshot_multilabel"
    assert len(ours.outcomes.columns["rank"]) == 12


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no numpy", "has a .npy file that cannot be read"),
        (vector(0, 1), "has labels that are not 5 zeros and ones"),
        (vector(0, 1, 2, 0, 0), "has labels that are not 5 zeros and ones"),
    ],
)
def test_what_is_no_multilabel_sample(tmp_path: Path, content: bytes, sentence: str) -> None:
    files = {**classification_files(CLASSES), "dataset_type.txt": "multilabel"}
    path = write_set(tmp_path / "bad", [[("a.png", picture(0)), ("a.npy", content)]], files)
    with pytest.raises(DataError, match=sentence):
        read_set(path)
