"""Small data sets made by other means than the harness's own writers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.config.data import ShapesData

SMALL_WORLD = ShapesData(train_samples=96, test_samples=40, shapes=3, colours=2, backgrounds=2, sizes=2)

Members = Mapping[str, bytes]


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture of its own for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def sample(number: int, *, form: str = "JPEG", **metadata: Any) -> dict[str, bytes]:
    """What img2dataset writes for one image: the picture, its caption, and its row."""
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[form]
    row = {"url": f"http://x/{number}", "caption": f"raw {number}", "status": "success", **metadata}
    row.setdefault("captions", [f"first {number}", f"second {number}"])
    return {
        extension: encoded(picture(number), form),
        "txt": f"raw {number}".encode(),
        "json": json.dumps(row).encode(),
    }


def write_tar(path: Path, samples: Iterable[tuple[str, Members]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def two_shards(folder: Path) -> Path:
    """Two shards as img2dataset writes them; 00000_0003 failed to download and is absent."""
    formats = ("JPEG", "PNG", "WEBP")
    for shard in range(2):
        numbers = [number for number in range(6) if (shard, number) != (0, 3)]
        samples = [
            (f"{shard:05d}{number:04d}", sample(10 * shard + number, form=formats[number % 3])) for number in numbers
        ]
        write_tar(folder / f"{shard:05d}.tar", samples)
    return folder
