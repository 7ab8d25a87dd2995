"""A teacher's features of a data set: computed once for each (data, teacher), stored beside, shared by all runs.

    store/features/<data>-<teacher>/
        image.npy            [S, e] float16, unit rows
        <source>.npy         [U, e] float16, unit rows of the distinct captions of a source (`raw`, `captioner`...)
        <source>.rows.npz    where each caption of each sample stands among them

Images are seen un-augmented, through the teacher's own evaluation transform (FFF, Section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.captions import RAW
from harness.data.dataset import Dataset
from harness.files import replacing
from harness.identity import digest
from harness.models import Towers
from harness.spec.captions import Captions
from harness.store import exclusive

BATCH = 512
RAW_NAME = "raw"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """Features of one caption source."""

    features: npt.NDArray[np.float16]
    """[U, e] memory-mapped."""
    rows: npt.NDArray[np.int32]
    """[T] row of each caption, sample by sample."""
    starts: Ints
    """[S + 1] where each sample's captions begin in `rows`."""


class TeacherFeatures:
    """Features by sample index and by caption (source number of `harness.captions`, position)."""

    def __init__(self, image: npt.NDArray[np.float16], sources: dict[int, _Source]) -> None:
        self._image, self._sources = image, sources

    def image(self, samples: Ints) -> Tensor:
        """Unit image features [N, e], float32."""
        return torch.from_numpy(np.asarray(self._image[samples], dtype=np.float32))

    def text(self, samples: Ints, source: Ints, position: Ints) -> Tensor:
        """Unit text features [M, e], float32, of captions: their sample, source number and position, each [M]."""
        found = np.empty((len(samples), self._image.shape[1]), dtype=np.float32)
        for number, one in self._sources.items():
            chosen = source == number
            found[chosen] = one.features[one.rows[one.starts[samples[chosen]] + position[chosen]]]
        return torch.from_numpy(found)


def teacher_features(
    folder: Path, dataset: Dataset, captions: Captions, teacher: Callable[[], Towers], device: torch.device
) -> TeacherFeatures:
    """The features of all images and of the captions that `captions` may choose; what is missing is computed first.

    Args:
        folder: `features_folder` of this data set and teacher.
        teacher: builds the teacher's towers; called only when something is missing.
    """
    wanted = {RAW: RAW_NAME} | dict(enumerate(captions.sources if captions.count else ()))
    with exclusive(folder / "lock", wait=True):
        _compute_missing(folder, dataset, captions, list(wanted.values()), teacher, device)
    sources = {number: _read(folder, _stem(name, captions)) for number, name in wanted.items()}
    return TeacherFeatures(np.load(folder / "image.npy", mmap_mode="r"), sources)


def features_folder(root: Path, fingerprint: str, teacher: str) -> Path:
    """Where the features of one data set by one teacher are kept."""
    return root / f"{fingerprint[:12]}-{digest(teacher)}"


def _compute_missing(
    folder: Path,
    dataset: Dataset,
    captions: Captions,
    names: list[str],
    teacher: Callable[[], Towers],
    device: torch.device,
) -> None:
    missing = [name for name in names if not (folder / f"{_stem(name, captions)}.npy").exists()]
    has_images = (folder / "image.npy").exists()
    if has_images and not missing:
        return
    towers = teacher().to(device).eval()
    with torch.inference_mode():
        if not has_images:
            pixels = (torch.stack([towers.preprocess(dataset.image(i)) for i in part]) for part in _parts(len(dataset)))
            _save(folder / "image.npy", _joined(towers.encode_image(batch.to(device)) for batch in pixels))
        for name in missing:
            texts, rows, starts = _distinct(dataset, name, captions)
            parts = (texts[part.start : part.stop] for part in _parts(len(texts)))
            features = _joined(towers.encode_text(towers.tokenize(part).to(device)) for part in parts)
            stem = _stem(name, captions)
            with replacing(folder / f"{stem}.rows.npz") as aside, aside.open("wb") as stream:
                np.savez(stream, rows=rows, starts=starts)
            _save(folder / f"{stem}.npy", features)


def _distinct(dataset: Dataset, name: str, captions: Captions) -> tuple[list[str], npt.NDArray[np.int32], Ints]:
    """The distinct captions of a source, the row of each caption, and where each sample's captions begin."""
    numbers: dict[str, int] = {}
    rows: list[int] = []
    starts = [0]
    for sample in range(len(dataset)):
        texts = (dataset.raw(sample),) if name == RAW_NAME else dataset.pseudo(name, sample)
        for text in texts:
            text = text.lower() if captions.text == "lower" else text
            rows.append(numbers.setdefault(text, len(numbers)))
        starts.append(len(rows))
    return list(numbers), np.array(rows, dtype=np.int32), np.array(starts, dtype=np.int64)


def _stem(name: str, captions: Captions) -> str:
    return name if captions.text == "none" else f"{name}.{captions.text}"


def _parts(total: int) -> Iterator[range]:
    return (range(start, min(start + BATCH, total)) for start in range(0, total, BATCH))


def _joined(features: Iterable[Tensor]) -> npt.NDArray[np.float16]:
    return np.concatenate([part.cpu().numpy().astype(np.float16) for part in features])


def _save(path: Path, features: npt.NDArray[np.float16]) -> None:
    with replacing(path) as aside, aside.open("wb") as stream:
        np.save(stream, features)


def _read(folder: Path, stem: str) -> _Source:
    with np.load(folder / f"{stem}.rows.npz") as arrays:
        rows, starts = arrays["rows"], arrays["starts"]
    return _Source(np.load(folder / f"{stem}.npy", mmap_mode="r"), rows, starts)
