"""Class names and prompt templates of well-known sets, from the files that clip-benchmark ships, for sets without."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def conventional_classnames(folder: Path) -> list[str]:
    """clip-benchmark's class names for a set kept in `folder`, by label; empty where it has none of its own."""
    return list(_table("en_classnames.json").get(_name(folder), ()))


def conventional_templates(folder: Path) -> list[str]:
    """clip-benchmark's prompt templates for a set kept in `folder`; empty where it has none."""
    name = _name(folder).removesuffix("_vtab")
    return list(_table("en_zeroshot_classification_templates.json").get(name, ()))


def _name(folder: Path) -> str:
    """`pets` for `vtab/pets` and `wds_vtab-pets_test`."""
    name = folder.name.removesuffix("_test").removeprefix("wds_")
    of_vtab = folder.parent.name == "vtab" or name.startswith("vtab-")
    name = name.removeprefix("vtab-")
    # VTAB and torchvision number Caltech101's classes differently, so only a folder that says VTAB gets names.
    return "caltech101_vtab" if of_vtab and name == "caltech101" else "" if name == "caltech101" else name


@cache
def _table(file: str) -> dict[str, list[str]]:
    # Found, not imported: clip-benchmark imports torch.
    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        return {}
    text = (Path(spec.submodule_search_locations[0]) / "datasets" / file).read_text(encoding="utf-8")
    table: dict[str, list[str]] = json.loads(text)
    return table
