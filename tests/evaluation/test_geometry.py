"""Modality gap, alignment and uniformity: against the definitions, opt-in, from cached features, with ids as before."""

from __future__ import annotations

import math
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.config.evaluation import Evaluation
from harness.evaluation import geometry
from harness.evaluation.cache import FeatureCache
from harness.evaluation.evaluator import EvaluationTask, Evaluator
from harness.evaluation.registry import wanted
from harness.evaluation.sets import read_set
from harness.runs.metrics import metric_ids
from harness.runs.record import EvaluationResult
from tests.evaluation.worlds import TinyClip, retrieval_members, retrieval_set, write_set

NAMES = ("modality_gap", "alignment", "image_uniformity", "text_uniformity")
ASKED = Evaluation(feature_metrics=NAMES)


def unit(count: int, width: int = 12, seed: int = 0) -> NDArray[np.float64]:
    found = np.random.default_rng(seed).normal(size=(count, width))
    unit_rows: NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit_rows


def pairs(features: NDArray[np.float64]) -> list[float]:
    """Squared distance of every two rows."""
    count = len(features)
    return [float(sum((features[i] - features[j]) ** 2)) for i in range(count) for j in range(i + 1, count)]


def test_uniformity_is_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    features = unit(23)
    expected = math.log(math.fsum(math.exp(-2 * one) for one in pairs(features)) / (23 * 22 / 2))
    for rows in (1, 5, 23, 1024):
        monkeypatch.setattr(geometry, "ROWS_AT_ONCE", rows)
        assert geometry.uniformity(features) == pytest.approx(expected, rel=1e-12)
    distances = torch.pdist(torch.from_numpy(features), p=2)  # as Wang and Isola's code has it
    theirs = distances.pow(2).mul(-2).exp().mean().log()
    assert geometry.uniformity(features) == pytest.approx(float(theirs), rel=1e-12)


def test_they_do_not_depend_on_the_axes() -> None:
    images, captions = unit(9), unit(9, seed=1)
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))
    assert geometry.modality_gap(images @ turn, captions @ turn) == pytest.approx(
        geometry.modality_gap(images, captions)
    )
    assert geometry.uniformity(images @ turn) == pytest.approx(geometry.uniformity(images))


def test_extremes() -> None:
    one, other = np.tile([1.0, 0.0], (4, 1)), np.tile([-1.0, 0.0], (4, 1))
    assert geometry.modality_gap(one, other) == 2
    assert geometry.modality_gap(one, one) == 0
    assert geometry.squared_distances(one, other, np.arange(4)).tolist() == [4.0] * 4
    assert geometry.uniformity(one) == 0
    assert geometry.uniformity(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)
    assert geometry.uniformity(one[:1]) is None


def measured(model: TinyClip, folder: Path, spec: Evaluation, cache: FeatureCache | None = None) -> EvaluationResult:
    job = EvaluationTask(read_set(folder), spec)
    (found,) = Evaluator(model, [job], spec, batch_size=5, device=torch.device("cpu"), cache=cache, cache_bytes=0)()
    return found.evaluation


def test_the_metrics_of_a_set_are_those_of_its_features(tmp_path: Path) -> None:
    folder, model = retrieval_set(tmp_path / "pictures"), TinyClip(2).eval()
    found = measured(model, folder, ASKED).metrics
    one = read_set(folder)
    owner = [index for index, captions in enumerate(one.captions) for _ in captions]
    texts = [text for captions in one.captions for text in captions]
    with torch.no_grad():
        pixels = torch.stack([model.preprocess(one.image(index)) for index in range(len(one))])
        sides = model.encode_image(pixels), model.encode_text(model.tokenize(texts))
    images, captions = (
        side.double().numpy() / np.linalg.norm(side.double().numpy(), axis=1)[:, None] for side in sides
    )
    distances = [float(sum((images[of] - caption) ** 2)) for of, caption in zip(owner, captions, strict=True)]
    expected = {
        "modality_gap": math.sqrt(sum((sum(images) / len(images) - sum(captions) / len(captions)) ** 2)),
        "alignment": math.fsum(distances) / len(distances),
    }
    for name, features in (("image_uniformity", images), ("text_uniformity", captions)):
        exponents = [math.exp(-2 * squared) for squared in pairs(features)]
        expected[name] = math.log(math.fsum(exponents) / len(exponents))
    assert {name: found[name].value for name in NAMES} == pytest.approx(expected, abs=1e-6)
    mean = expected["alignment"]
    by_image = [sum(d - mean for d, of in zip(distances, owner, strict=True) if of == i) for i in range(len(one))]
    error = math.sqrt(math.fsum(deviation**2 for deviation in by_image)) / len(distances)
    assert found["alignment"].standard_error == pytest.approx(error, rel=1e-4)
    assert [found[name].samples for name in NAMES] == [len(texts), len(texts), len(one), len(texts)]


def test_they_are_asked_for_and_change_no_id(tmp_path: Path) -> None:
    folder, model = retrieval_set(tmp_path / "pictures"), TinyClip().eval()
    plain, more = measured(model, folder, Evaluation()), measured(model, folder, ASKED)
    assert not set(NAMES) & plain.metrics.keys()
    assert {name: metric for name, metric in more.metrics.items() if name not in NAMES} == plain.metrics
    assert more.protocol_id == plain.protocol_id
    assert {name: id for name, id in metric_ids(more).items() if name not in NAMES} == metric_ids(plain)
    assert not set(NAMES) & set(wanted("zeroshot_classification", ASKED))


def test_they_need_no_forward_pass(tmp_path: Path) -> None:
    folder, model = retrieval_set(tmp_path / "pictures"), TinyClip().eval()
    cache = FeatureCache(tmp_path / "cache", "weights")
    measured(model, folder, Evaluation(), cache)
    seen = model.images_seen, model.texts_seen
    assert set(NAMES) <= measured(model, folder, ASKED, cache).metrics.keys()
    assert (model.images_seen, model.texts_seen) == seen


def test_one_picture_has_no_uniformity(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", [retrieval_members([["a", "b"]])], {"dataset_type.txt": "retrieval"})
    found = measured(TinyClip().eval(), folder, ASKED)
    assert "image_uniformity" in found.undefined
    assert "text_uniformity" in found.metrics


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    example = page.partition("Opt in to metrics of the features")[2].partition("\n\n")[2].partition("\n\n")[0]
    spec = Evaluation.model_validate(tomllib.loads(textwrap.dedent(example))["evaluation"])
    assert spec.sets == ("flickr30k",)
    assert set(NAMES) <= measured(TinyClip().eval(), retrieval_set(tmp_path / "flickr30k"), spec).metrics.keys()
