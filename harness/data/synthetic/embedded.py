"""The data sets that the harness brings along: their names, and the folders that they are generated into."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from harness.config.data import Data, DigitsData, ShapesData, TableData, WebdatasetData

EMBEDDED_SOURCES = ("captioner", "captioner_b")
"""Pseudo-caption sources of the embedded data sets."""


def home(data: ShapesData | DigitsData, cache: Path) -> Path:
    """The folder of a generated data set: everything that shapes its content is in the name."""
    content = json.dumps([data.science(defaults=True), data.algorithm], sort_keys=True)
    return cache / f"{data.kind}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def train_shards(data: ShapesData | DigitsData, cache: Path) -> WebdatasetData:
    """The generated training data as the shards that they are."""
    return WebdatasetData(
        shards=str(home(data, cache) / "train" / "*.tar"),
        pseudo={source: f"json:{source}" for source in EMBEDDED_SOURCES},
    )


def embedded_names(data: Data) -> tuple[str, ...]:
    """Names of the evaluation sets that come with `data`."""
    match data:
        case ShapesData():
            return ("shapes", "shapes_retrieval")
        case DigitsData():
            return ("digits",)
        case WebdatasetData() | TableData():
            return ()


def embedded_sets(data: Data, cache: Path) -> dict[str, Path]:
    """Folders of the evaluation sets that come with `data`, by name, in clip-benchmark's layout."""
    if not isinstance(data, ShapesData | DigitsData):
        return {}
    return {name: home(data, cache) / "eval" / name for name in embedded_names(data)}
