"""Writing data as others lay it out: webdataset shards of img2dataset, evaluation sets of clip-benchmark."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from harness.data.synthetic.shapes import Pixels

EVALUATION_SHARDS = 4
"""As many as clip-benchmark starts workers by default; with fewer shards than workers it finds no samples."""

Sample = tuple[str, Mapping[str, bytes]]
"""A key and its members by extension."""


def png(pixels: Pixels) -> bytes:
    """One picture [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples to one tar file; equal samples give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_shards(folder: Path, samples: Sequence[Sample], per_shard: int) -> None:
    """Write `folder`/00000.tar and so on, `per_shard` samples each."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(samples), per_shard)):
        write_tar(folder / f"{number:05d}.tar", samples[start : start + per_shard])


def write_classification(
    folder: Path, pictures: Pixels, labels: Sequence[int], names: Sequence[str], templates: Sequence[str]
) -> None:
    """An evaluation set for zero-shot classification: `pictures` [S, H, W, 3] of the classes `labels` [S]."""
    members = [{"png": png(picture), "cls": b"%d" % label} for picture, label in zip(pictures, labels, strict=True)]
    _write_evaluation(folder, members)
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")


def write_retrieval(folder: Path, pictures: Pixels, captions: Sequence[Sequence[str]]) -> None:
    """An evaluation set for zero-shot retrieval: `pictures` [S, H, W, 3] with the captions of each."""
    members = [
        {"png": png(picture), "txt": "\n".join(texts).encode()}
        for picture, texts in zip(pictures, captions, strict=True)
    ]
    _write_evaluation(folder, members)
    (folder / "dataset_type.txt").write_text("retrieval\n")


def _write_evaluation(folder: Path, members: Sequence[Mapping[str, bytes]]) -> None:
    test = folder / "test"
    test.mkdir(parents=True)
    samples = [(f"{number:06d}", sample) for number, sample in enumerate(members)]
    per_shard = max(-(-len(samples) // EVALUATION_SHARDS), 1)
    shards = [samples[start : start + per_shard] for start in range(0, len(samples), per_shard)]
    for number, shard in enumerate(shards):
        write_tar(test / f"{number}.tar", shard)
    (test / "nshards.txt").write_text(f"{len(shards)}\n")
