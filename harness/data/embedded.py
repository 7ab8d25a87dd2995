"""Generates the embedded data sets on disk, as shards and evaluation sets like anybody's."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.data import digits, shapes
from harness.data.layout import Sample, png, write_classification, write_retrieval, write_shards
from harness.data.truth import TRUTH, save_truth
from harness.data.wording import Claims, captioner_claims, digits_phrases, raw_claims, shapes_phrases, texts
from harness.errors import StoreError
from harness.spec.data import DigitsData, ShapesData, WebdatasetData

PSEUDO = ("captioner", "captioner_b")
SAMPLES_PER_SHARD = 2048
RETRIEVAL_CAPTIONS = 5
_STALE_S = 3600.0

SHAPES_TEMPLATES = ("{c}", "a {c}", "a photo of a {c}", "there is a {c}", "a picture of a {c}")
DIGITS_TEMPLATES = ("the digit {c}", "a photo of the digit {c}", "a handwritten {c}, a digit")


def home(data: ShapesData | DigitsData, cache: Path) -> Path:
    """The folder of a generated data set: everything that shapes its content is in the name."""
    content = json.dumps([data.science(defaults=True), data.algorithm], sort_keys=True)
    return cache / f"{data.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def train_shards(data: ShapesData | DigitsData, cache: Path) -> WebdatasetData:
    """The generated training data as the shards that they are."""
    return WebdatasetData(
        shards=str(home(data, cache) / "train" / "*.tar"), pseudo={source: f"json:{source}" for source in PSEUDO}
    )


def embedded_sets(data: ShapesData | DigitsData, cache: Path) -> dict[str, Path]:
    """Folders of the evaluation sets that come with `data`, by name, in clip-benchmark's layout."""
    names = ("shapes", "shapes_retrieval") if isinstance(data, ShapesData) else ("digits",)
    return {name: home(data, cache) / "eval" / name for name in names}


def materialise(data: ShapesData | DigitsData, cache: Path) -> Path:
    """Generate `data` under `cache` unless it is there; returns its folder.

    The folder appears whole or not at all: a killed process leaves only a hidden folder that a later one removes,
    and of several processes at once the first to finish wins.

    Raises:
        StoreError: the cache cannot be written.
    """
    folder = home(data, cache)
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
        try:
            _generate(data, aside)
            aside.chmod(0o755)
            _move_into_place(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror or error})",
            where=str(folder),
            fix="free space or mend the permissions",
        ) from error
    return folder


def _move_into_place(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_stale(folder: Path) -> None:
    for aside in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - aside.stat().st_mtime > _STALE_S:
            shutil.rmtree(aside, ignore_errors=True)


def _generate(data: ShapesData | DigitsData, folder: Path) -> None:
    match data:
        case ShapesData():
            _generate_shapes(data, folder)
        case DigitsData():
            _generate_digits(data, folder)


def _generate_shapes(data: ShapesData, folder: Path) -> None:
    world = shapes.attributes(data)
    true = shapes.draw_attributes(data)
    claims = _all_claims(data, true, world.counts)
    captions = {
        source: texts(data.seed, source, said, world.vocabulary, shapes_phrases, data.synonyms)
        for source, said in claims.items()
    }
    _write_training(folder, shapes.draw(data, "train", true), true, claims, captions)

    tested = shapes.test_attributes(data)
    labels = (tested[:, 0].astype(int) * data.colours + tested[:, 1]).tolist()
    pictures = shapes.draw(data, "test", tested)
    write_classification(folder / "eval" / "shapes", pictures, labels, shapes.class_names(data), SHAPES_TEMPLATES)

    combinations = shapes.all_combinations(data)
    said = np.repeat(combinations[:, None, :], RETRIEVAL_CAPTIONS, axis=1)
    described = texts(data.seed, "retrieval", said, world.vocabulary, shapes_phrases, data.synonyms)
    write_retrieval(folder / "eval" / "shapes_retrieval", shapes.draw(data, "retrieval", combinations), described)


def _generate_digits(data: DigitsData, folder: Path) -> None:
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
        pseudo = {source: captions[source][number] for source in PSEUDO}
        members = {"json": json.dumps(pseudo).encode(), "txt": captions["raw"][number][0].encode()}
        samples.append((f"{number:09d}", {"png": png(picture), **members}))
    write_shards(folder / "train", samples, SAMPLES_PER_SHARD)
    save_truth(folder / TRUTH, true, claims)
