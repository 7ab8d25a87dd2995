"""Generates the embedded data sets on disk, as shards and evaluation sets like anybody's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.base.registry import Registry
from harness.config.data import DigitsData, OpenclipartData, ShapesData
from harness.data.synthetic import digits, shapes
from harness.data.synthetic.captions import Claims, captioner_claims, digits_phrases, raw_claims, shapes_phrases, texts
from harness.data.synthetic.embedded import EMBEDDED_SOURCES
from harness.data.synthetic.layout import Sample, png, write_classification, write_retrieval, write_shards
from harness.data.synthetic.truth import TRUTH, save_truth

SAMPLES_PER_SHARD = 2048
RETRIEVAL_CAPTIONS = 5

generators: Registry[[Path, Path | None], None] = Registry("data")
"""What writes each embedded world into a folder: train/, eval/ with its evaluation sets, and the truth. The second
argument is the package that it is made of, if it is not the installed one."""

SHAPES_TEMPLATES = ("{c}", "a {c}", "a photo of a {c}", "there is a {c}", "a picture of a {c}")
DIGITS_TEMPLATES = ("the digit {c}", "a photo of the digit {c}", "a handwritten {c}, a digit")


@generators.register(ShapesData)
def generate_shapes(data: ShapesData, folder: Path, _package: Path | None = None) -> None:
    """Write the world `data` under `folder`: train/, eval/shapes/, eval/shapes_retrieval/ and the truth."""
    world = shapes.attributes(data)
    true = shapes.draw_attributes(data)
    claims = _all_claims(data, true, world.counts)
    captions = {
        source: texts(data.seed, source, said, world.vocabulary, shapes_phrases, data.synonyms)
        for source, said in claims.items()
    }
    _write_training(folder, shapes.draw(data, "train", true), true, claims, captions)

    tested = shapes.evaluation_attributes(data)
    labels = (tested[:, 0].astype(int) * data.colours + tested[:, 1]).tolist()
    pictures = shapes.draw(data, "test", tested)
    write_classification(folder / "eval" / "shapes", pictures, labels, shapes.class_names(data), SHAPES_TEMPLATES)

    combinations = shapes.all_combinations(data)
    said = np.repeat(combinations[:, None, :], RETRIEVAL_CAPTIONS, axis=1)
    described = texts(data.seed, "retrieval", said, world.vocabulary, shapes_phrases, data.synonyms)
    write_retrieval(folder / "eval" / "shapes_retrieval", shapes.draw(data, "retrieval", combinations), described)


@generators.register(DigitsData)
def generate_digits(data: DigitsData, folder: Path, _package: Path | None = None) -> None:
    """Write the digits with their captions under `folder`: train/, eval/digits/ and the truth."""
    pictures, true = digits.load(data)
    train, test = digits.split(data, true[:, 0])
    claims = _all_claims(data, true[train], digits.COUNTS)
    captions = {
        source: texts(data.seed, source, said, digits.VOCABULARY, digits_phrases, data.synonyms)
        for source, said in claims.items()
    }
    _write_training(folder, pictures[train], true[train], claims, captions)
    labels = true[test, 0].tolist()
    write_classification(folder / "eval" / "digits", pictures[test], labels, digits.CLASS_NAMES, DIGITS_TEMPLATES)


@generators.register(OpenclipartData)
def generate_openclipart(data: OpenclipartData, folder: Path, package: Path | None = None) -> None:
    """Write the drawings of the package openclipart-svg: train/, both evaluation sets, truth and counts."""
    from harness.data.openclipart.build import build

    build(data, folder, package)


def _all_claims(data: ShapesData | DigitsData, true: Claims, counts: tuple[int, ...]) -> dict[str, Claims]:
    return {
        "raw": raw_claims(data.seed, true, counts, data.raw),
        "captioner": captioner_claims(data.seed, "captioner", true, counts, data.captioner),
        "captioner_b": captioner_claims(data.seed, "captioner_b", true, counts, data.captioner_b),
    }


def _write_training(
    folder: Path,
    pictures: shapes.Pixels,
    true: Claims,
    claims: Mapping[str, Claims],
    captions: Mapping[str, list[tuple[str, ...]]],
) -> None:
    samples: list[Sample] = []
    for number, picture in enumerate(pictures):
        pseudo = {source: captions[source][number] for source in EMBEDDED_SOURCES}
        members = {"json": json.dumps(pseudo).encode(), "txt": captions["raw"][number][0].encode()}
        samples.append((f"{number:09d}", {"png": png(picture), **members}))
    write_shards(folder / "train", samples, SAMPLES_PER_SHARD)
    save_truth(folder / TRUTH, true, claims)
