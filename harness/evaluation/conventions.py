"""Class names and prompt templates of well-known sets, from the files that clip-benchmark ships, for sets without.

The relatives of ImageNet have its names and templates. ImageNet-A and -R have 200 of the 1,000 classes, in their order.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SUBSETS = {"imagenet-a": "imagenet_a_wnids", "imagenet-r": "imagenet_r_wnids"}
"""Sets with a part of ImageNet's classes: by name, the list of their WordNet ids in clip-benchmark's code."""
_SAME_CLASSES = ("imagenetv2", "imagenet_sketch")


def conventional_classnames(folder: Path) -> list[str]:
    """clip-benchmark's class names for a set kept in `folder`, by label; empty where it has none of its own."""
    name = _name(folder)
    known = _table("en_classnames.json")
    if name in SUBSETS and (of := known.get("imagenet1k")):
        return [of[label] for label in imagenet_labels(name)]
    return list(known.get("imagenet1k" if name in _SAME_CLASSES else name, ()))


def imagenet_labels(name: str) -> tuple[int, ...]:
    """ImageNet's labels of the classes of ImageNet-A or -R, ascending; empty if clip-benchmark is not installed."""
    every, *subset = (_wordnet_ids().get(one, ()) for one in ("all_imagenet_wordnet_ids", SUBSETS[name]))
    wanted = {one for ids in subset for one in ids}
    return tuple(label for label, one in enumerate(every) if one in wanted)


def conventional_templates(folder: Path) -> list[str]:
    """clip-benchmark's prompt templates for a set kept in `folder`; empty where it has none."""
    name = _name(folder).removesuffix("_vtab")
    name = "imagenet1k" if name in (*SUBSETS, *_SAME_CLASSES, "objectnet") else name
    return list(_table("en_zeroshot_classification_templates.json").get(name, ()))


def _name(folder: Path) -> str:
    """`pets` for `vtab/pets` and `wds_vtab-pets_test`."""
    name = folder.name.removesuffix("_test").removeprefix("wds_")
    of_vtab = folder.parent.name == "vtab" or name.startswith("vtab-")
    name = name.removeprefix("vtab-")
    # VTAB and torchvision number Caltech101's classes differently, so only a folder that says VTAB gets names.
    return "caltech101_vtab" if of_vtab and name == "caltech101" else "" if name == "caltech101" else name


@cache
def _wordnet_ids() -> dict[str, tuple[str, ...]]:
    """The lists of WordNet ids in clip-benchmark's code, by variable. It is read, not imported: it imports torch."""
    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        return {}
    text = (Path(spec.submodule_search_locations[0]) / "datasets" / "builder.py").read_text(encoding="utf-8")
    found = {}
    for node in ast.walk(ast.parse(text)):
        name = node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else ""
        if isinstance(node, ast.Assign) and name in (*SUBSETS.values(), "all_imagenet_wordnet_ids"):
            found[name] = tuple(ast.literal_eval(node.value))
    return found


@cache
def _table(file: str) -> dict[str, list[str]]:
    # Found, not imported: clip-benchmark imports torch.
    spec = find_spec("clip_benchmark")
    if spec is None or not spec.submodule_search_locations:
        return {}
    text = (Path(spec.submodule_search_locations[0]) / "datasets" / file).read_text(encoding="utf-8")
    table: dict[str, list[str]] = json.loads(text)
    return table
