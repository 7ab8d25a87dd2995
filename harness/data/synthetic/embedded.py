"""The data sets that the harness brings along: their names, and the folders that they are generated into."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from harness.config.data import Data, EmbeddedWorld, FileSpec, MixtureData, WebdatasetData, unknown_data

EMBEDDED_SOURCES = ("captioner", "captioner_b")
"""Pseudo-caption sources of the embedded data sets."""


def home(data: EmbeddedWorld, cache: Path) -> Path:
    """The folder of a generated data set: everything that shapes its content is in the name."""
    content = json.dumps([data.science(defaults=True), data.algorithm], sort_keys=True)
    return cache / f"{data.kind_name()}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def train_shards(data: EmbeddedWorld, cache: Path) -> WebdatasetData:
    """The generated training data as the shards that they are."""
    return WebdatasetData(
        shards=str(home(data, cache) / "train" / "*.tar"),
        pseudo={source: f"json:{source}" for source in EMBEDDED_SOURCES},
    )


def embedded_sets(data: Data, cache: Path) -> dict[str, Path]:
    """Folders of the evaluation sets that come with `data`, by name, in clip-benchmark's layout."""
    match data:
        case EmbeddedWorld():
            return {name: home(data, cache) / "eval" / name for name in data.evaluation_sets}
        case FileSpec() | MixtureData():
            return {}
        case _:
            raise unknown_data(data)
