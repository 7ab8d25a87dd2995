"""Evaluation sets made for measuring: clip-benchmark's local layout, small random pictures, prompts and captions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("red", "green", "blue", "old", "new", "small", "large", "round", "wet", "dry")
THINGS = ("cat", "dog", "fox", "owl", "ant", "horse", "car", "boat", "tree", "house")
CAPTIONS = 5
"""Captions an image, as Flickr30k and COCO have them."""


def write_classification(path: Path, names: Sequence[str], templates: Sequence[str], images: int, side: int) -> Path:
    """A set of `images` pictures of `side` pixels, labels in turn."""
    write_shard(path, images, side, "cls", lambda i: str(i % len(names)))
    (path / "classnames.txt").write_text("\n".join(names))
    (path / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    return path


def write_retrieval(path: Path, images: int, side: int) -> Path:
    """A set of `images` pictures of `side` pixels with five captions of eleven words each, all different."""

    def text(i: int) -> str:
        chosen = np.random.default_rng(i).choice(WORDS + THINGS, (CAPTIONS, 9))
        return "\n".join(f"{' '.join(words)} {i} {j}" for j, words in enumerate(chosen))

    write_shard(path, images, side, "txt", text)
    (path / "dataset_type.txt").write_text("retrieval")
    return path


def write_shard(path: Path, images: int, side: int, suffix: str, text: Callable[[int], str]) -> None:
    """One shard of random pictures, each with what `text` says of it."""
    (path / "test").mkdir(parents=True, exist_ok=True)
    (path / "test" / "nshards.txt").write_text("1")
    pixels = np.random.default_rng(images)
    with tarfile.open(path / "test" / "0.tar", "w") as archive:
        for i in range(images):
            stream = io.BytesIO()
            small = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((side, side)).save(stream, "JPEG")
            for name, content in ((f"{i:06d}.jpg", stream.getvalue()), (f"{i:06d}.{suffix}", text(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
