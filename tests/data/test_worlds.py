from __future__ import annotations

import hashlib
import json
from functools import cache
from itertools import product

import numpy as np
import pytest

from harness.config.data import Captioner, DigitsData, RawCaptions, ShapesData
from harness.data.synthetic import digits, shapes
from harness.data.synthetic.captions import (
    GENERIC,
    SILENT,
    Claims,
    captioner_claims,
    digits_phrases,
    raw_claims,
    shapes_phrases,
    texts,
)
from tests.data.made import SMALL_WORLD
from tests.data.reading import claims_of_digits, claims_of_shapes

FULL = ShapesData(train_samples=4000, shapes=8, colours=8, backgrounds=6, sizes=3)


def captions(data: ShapesData, source: str, claims: Claims) -> list[tuple[str, ...]]:
    return texts(data.seed, source, claims, shapes.attributes(data).vocabulary, shapes_phrases, data.synonyms)


@cache
def drawn(data: ShapesData) -> Claims:
    return shapes.draw_attributes(data)


def digest_of_world(data: ShapesData) -> str:
    true = shapes.draw_attributes(data)
    counts = shapes.attributes(data).counts
    claims = captioner_claims(data.seed, "captioner", true, counts, data.captioner)
    raw = raw_claims(data.seed, true, counts, data.raw)
    digest = hashlib.sha256(shapes.draw(data, "train", true).tobytes())
    digest.update(json.dumps([captions(data, "raw", raw), captions(data, "captioner", claims)]).encode())
    return digest.hexdigest()


def test_the_world_is_the_same_on_every_machine() -> None:
    # If this fails on purpose, raise ShapesData.algorithm: runs on the old world must keep their ids.
    assert digest_of_world(SMALL_WORLD) == "8258e280c214202465c032d977741f525ce749fcb2d40402e99874a1ef65191d"
    assert (
        digest_of_world(ShapesData(train_samples=64, shapes=8, colours=8, backgrounds=6, sizes=3))
        == "e3f7f9c93afcae804674827edb17e8603becec60ee33565abee7fb6a4f31c623"
    )
    assert ShapesData.algorithm == 1


def test_another_seed_is_another_world_and_captions_do_not_change_pictures() -> None:
    other = SMALL_WORLD.model_validate({**SMALL_WORLD.model_dump(), "seed": 1})
    assert digest_of_world(other) != digest_of_world(SMALL_WORLD)
    reworded = SMALL_WORLD.model_validate({**SMALL_WORLD.model_dump(), "raw": {"error": 0.9}, "synonyms": 1.0})
    assert np.array_equal(drawn(reworded), drawn(SMALL_WORLD))
    before, after = (shapes.draw(data, "train", drawn(data)) for data in (SMALL_WORLD, reworded))
    assert np.array_equal(before, after)


def test_shapes_and_colours_are_drawn_with_the_declared_weights() -> None:
    data = ShapesData(train_samples=40_000)
    true = shapes.draw_attributes(data)
    for column, values in ((0, data.shapes), (1, data.colours)):
        weights = np.array([(rank + 2) ** -data.skew for rank in range(values)])
        found = np.bincount(true[:, column], minlength=values) / len(true)
        assert np.abs(found - weights / weights.sum()).max() < 4 * np.sqrt(0.25 / len(true))
    for column, values in ((2, data.backgrounds), (3, data.sizes)):
        found = np.bincount(true[:, column], minlength=values) / len(true)
        assert np.abs(found - 1 / values).max() < 4 * np.sqrt(0.25 / len(true))


def test_an_object_has_its_colour_and_its_background_reaches_the_corners() -> None:
    data = ShapesData(train_samples=600, shapes=2, colours=8, backgrounds=2, sizes=1, pixel_noise=0)
    true = shapes.draw_attributes(data)
    pictures = shapes.draw(data, "train", true).astype(int)
    saturation = pictures.max(axis=3) - pictures.min(axis=3)
    palette = np.array([shapes.RGB[colour] for colour in true[:, 1]])
    for picture, where, expected, ground in zip(pictures, saturation > 12, palette, true[:, 2], strict=True):
        assert where.any()
        solid = np.median(picture[where], axis=0)
        assert np.abs(solid - expected).max() <= 24
        corner = picture[~where].mean()
        assert (corner > 200) if ground == 0 else (corner < 60)


def test_every_two_shapes_differ_visibly_at_every_size() -> None:
    data = ShapesData(shapes=8, colours=2, backgrounds=1, sizes=3, pixel_noise=0, image_size=64)
    for size in range(3):
        rows = np.array([(shape, 0, 0, size) for shape in range(8)], dtype=np.int8)
        # One stream for all, so that only the shape differs.
        masks = [shapes.draw(data, "one", row[None])[0].min(axis=2) < 150 for row in rows]
        for first, second in product(range(8), repeat=2):
            union = (masks[first] | masks[second]).sum()
            overlap = (masks[first] & masks[second]).sum() / union
            assert (overlap > 0.99) if first == second else (overlap < 0.93), (first, second, size)


@pytest.mark.parametrize("data", [FULL, SMALL_WORLD], ids=["full", "small"])
def test_captions_say_what_they_claim_and_nothing_else(data: ShapesData) -> None:
    true, counts = drawn(data), shapes.attributes(data).counts
    claims = np.concatenate(
        [
            raw_claims(0, true, counts, data.raw),
            captioner_claims(0, "captioner", true, counts, Captioner(captions=3, attribute_probability=0.5)),
        ],
        axis=1,
    )
    for said, spoken in zip(claims, captions(data, "any", claims), strict=True):
        for row, text in zip(said, spoken, strict=True):
            assert claims_of_shapes(text) == tuple(row.tolist()), text


def test_every_phrase_of_every_combination_can_be_read_back() -> None:
    world = shapes.attributes(FULL)
    options = [[SILENT, *range(count)] for count in world.counts]
    for row in product(*options):
        words = [None if value == SILENT else world.vocabulary[column][value][-1] for column, value in enumerate(row)]
        if any(words):
            phrases = shapes_phrases(words)
            assert len(set(phrases)) == len(phrases) >= 3
            assert {claims_of_shapes(text) for text in phrases} == {row}
    for row in product([SILENT, *range(10)], [SILENT, 0, 1]):
        words = [None if value == SILENT else digits.VOCABULARY[column][value][-1] for column, value in enumerate(row)]
        if any(words):
            assert {claims_of_digits(text) for text in digits_phrases(words)} == {row}


def test_raw_captions_have_the_declared_faults() -> None:
    faults = RawCaptions(generic=0.25, partial=0.35, partial_error=0.1, error=0.3)
    data = ShapesData(train_samples=20_000)
    true, counts = shapes.draw_attributes(data), shapes.attributes(data).counts
    said = raw_claims(3, true, counts, faults)[:, 0]
    told = (said != SILENT).sum(axis=1)
    assert np.abs((told == 0).mean() - 0.25) < 0.015
    assert np.abs((told == 1).mean() - 0.35) < 0.015
    full = told == 2
    assert (said[full][:, 2:] == SILENT).all()
    assert np.abs((said != true)[full][:, :2].mean() - 0.3) < 0.015
    partial = said[told == 1]
    assert np.abs(((partial != SILENT).mean(axis=0)) - 0.25).max() < 0.03
    wrong = (partial != SILENT) & (partial != true[told == 1])
    assert np.abs(wrong.any(axis=1).mean() - 0.1) < 0.015


def test_a_captioner_tells_and_errs_as_declared() -> None:
    data = ShapesData(train_samples=5000, backgrounds=1)
    true, counts = shapes.draw_attributes(data), shapes.attributes(data).counts
    said = captioner_claims(0, "c", true, counts, Captioner(captions=4, attribute_probability=0.4, error_rate=0.2))
    assert said.shape == (5000, 4, 4)
    assert (said[..., 0] != SILENT).all()
    told = said != SILENT
    assert np.abs(told[..., 1:].mean(axis=(0, 1)) - 0.4).max() < 0.02
    wrong = told & (said != true[:, None])
    rates = wrong.sum(axis=(0, 1)) / told.sum(axis=(0, 1))
    assert np.abs(rates[[0, 1, 3]] - 0.2).max() < 0.02
    assert rates[2] == 0, "with one background there is no other to be mistaken for"
    colour = (said - true[:, None])[..., 1][wrong[..., 1]] % data.colours
    assert np.abs(np.bincount(colour, minlength=6)[1:] / len(colour) - 0.2).max() < 0.04
    other = captioner_claims(0, "d", true, counts, Captioner(captions=4, attribute_probability=0.4, error_rate=0.2))
    assert not np.array_equal(said, other)


def test_saying_nothing_is_worded_generically() -> None:
    nothing = np.full((50, 1, 4), SILENT, dtype=np.int8)
    assert {text for (text,) in captions(FULL, "raw", nothing)} == set(GENERIC)


def test_digits_are_split_evenly_and_entirely() -> None:
    data = DigitsData(test_samples=203, image_size=24)
    pictures, true = digits.load(data)
    assert pictures.shape == (1797, 24, 24, 3)
    assert len(pictures) == data.size() + data.test_samples
    train, test = digits.split(data, true[:, 0])
    assert sorted([*train, *test]) == list(range(1797))
    assert np.bincount(true[test, 0]).tolist() == [21] * 3 + [20] * 7
    assert (true[:, 1] == true[:, 0] % 2).all()
    assert (pictures[..., 0] == pictures[..., 1]).all()
    assert pictures.std() > 50
