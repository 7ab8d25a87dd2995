from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.config.data import DigitsData, ShapesData
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.synthetic.truth import AttributeTruth, load_truth, save_keyword_truth
from tests.data.made import SMALL_WORLD
from tests.data.reading import claims_of_digits, claims_of_shapes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(SMALL_WORLD, tmp_path_factory.mktemp("cache"))


def truth_of(dataset: Dataset) -> AttributeTruth:
    assert isinstance(dataset.truth, AttributeTruth)
    return dataset.truth


def every_caption(dataset: Dataset) -> list[tuple[int, str, int, str]]:
    """(sample, source, position, text) of all captions."""
    found = []
    for i in range(len(dataset)):
        found.append((i, "raw", 0, dataset.raw(i)))
        for source in dataset.sources:
            found += [(i, source, position, text) for position, text in enumerate(dataset.pseudo(source, i))]
    return found


def test_matches_are_what_reading_the_captions_says(world: Dataset) -> None:
    truth = truth_of(world)
    captions = every_caption(world)
    assert len(captions) == len(world) * 11
    images = np.array([5, 0, 17, 95, 5])
    match, informative = truth.matches(
        images,
        np.array([sample for sample, *_ in captions]),
        np.array([truth.source(source) for _, source, *_ in captions]),
        np.array([position for *_, position, _ in captions]),
    )
    assert match.shape == (5, len(captions))
    for j, (*_, text) in enumerate(captions):
        said = claims_of_shapes(text)
        assert informative[j] == any(claim >= 0 for claim in said)
        for i, image in enumerate(images):
            true = truth.attributes[image]
            assert match[i, j] == all(claim in (-1, value) for claim, value in zip(said, true, strict=True))


def test_a_wrong_caption_does_not_match_its_own_image(world: Dataset) -> None:
    truth = truth_of(world)
    samples = np.repeat(np.arange(len(world)), 5)
    positions = np.tile(np.arange(5), len(world))
    sources = np.full(len(samples), truth.source("captioner"))
    match, informative = truth.matches(np.arange(len(world)), samples, sources, positions)
    assert informative.all()
    own = match[samples, np.arange(len(samples))]
    # Each caption tells 1 + 3 * .6 attributes, each right with .92.
    expected = 0.92 * (0.4 + 0.6 * 0.92) ** 3
    assert abs(own.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(own))


def test_attributes_are_those_of_the_pictures(world: Dataset) -> None:
    truth = truth_of(world)
    dark = np.array([np.asarray(world.image(i)).astype(int).sum(axis=2).ravel() for i in range(len(world))])
    assert SMALL_WORLD.backgrounds == 2
    assert ((np.median(dark, axis=1) < 300) == (truth.attributes[:, 2] == 1)).mean() > 0.95


def test_digits_captions_say_what_their_truth_holds(tmp_path: Path) -> None:
    dataset = open_dataset(DigitsData(test_samples=1000), tmp_path)
    truth = truth_of(dataset)
    for sample, source, position, text in every_caption(dataset):
        said = truth.said(np.array([sample]), np.array([truth.source(source)]), np.array([position]))
        assert claims_of_digits(text) == tuple(said[0].tolist()), text
    everything = np.arange(len(dataset))
    zeros = np.zeros_like(everything)
    match, informative = truth.matches(everything, everything, zeros + truth.source("captioner"), zeros)
    assert informative.all()
    assert 0.04 < match.mean() < 0.2, "ten classes: each caption holds of about a tenth of all pictures"


def test_own_captions_of_a_faultless_world_always_match(tmp_path: Path) -> None:
    fields = {"raw": {"error": 0, "partial_error": 0}, "captioner": {"error_rate": 0}, "captioner_b": {"error_rate": 0}}
    dataset = open_dataset(ShapesData.model_validate({"train_samples": 64, "test_samples": 36, **fields}), tmp_path)
    truth = truth_of(dataset)
    everything = np.arange(64)
    for source in ("raw", *dataset.sources):
        sources = np.full(64, truth.source(source))
        match, _ = truth.matches(everything, everything, sources, np.zeros(64, dtype=np.int64))
        assert match.diagonal().all()


def test_keywords_match_if_at_least_half_of_them_are_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words, raw, pseudo = (rng.random(shape) < 0.3 for shape in ((20, 11), (20, 1, 11), (20, 4, 11)))
    save_keyword_truth(tmp_path / "truth.npz", words, {"raw": raw, "captioner": pseudo})
    truth = load_truth(tmp_path / "truth.npz")
    images, samples = np.array([3, 0, 19, 3]), rng.integers(0, 20, 200)
    sources = rng.integers(0, 2, 200)
    positions = np.where(sources == truth.source("captioner"), rng.integers(0, 4, 200), 0)
    match, informative = truth.matches(images, samples, sources, positions)
    for j in range(200):
        arrays = pseudo if sources[j] == truth.source("captioner") else raw
        said = set(np.flatnonzero(arrays[samples[j], positions[j]]).tolist())
        assert informative[j] == bool(said)
        for i, image in enumerate(images):
            held = said & set(np.flatnonzero(words[image]).tolist())
            assert match[i, j] == (len(held) >= len(said) / 2)
