"""A folder of captions in the making: which files it will have, so that a half-made source is never trained on.

settings.json                 how the captions were made, of which samples, in how many parts
captions-NNNNNN.parquet       key, captions, raw caption of PART samples; there whole or not at all
"""

from __future__ import annotations

from pathlib import Path

from harness.base.errors import DataError
from harness.base.files import read_json

SETTINGS = "settings.json"


def part_file(folder: Path, part: int) -> Path:
    """The file of a part."""
    return folder / f"captions-{part:06d}.parquet"


def check_finished(folder: Path) -> None:
    """Refuse a folder that `harness data caption` has begun and not finished; others are left alone.

    Raises:
        DataError: parts are missing.
    """
    if not (folder / SETTINGS).is_file():
        return
    stated = read_json(folder / SETTINGS)
    parts = int(stated.get("parts", 0)) if isinstance(stated, dict) else 0
    missing = [part for part in range(parts) if not part_file(folder, part).is_file()]
    if missing:
        what = f"{len(missing)} of {parts} parts of the captions are missing"
        raise DataError(what, where=str(folder), fix="resume with `harness data caption`")
