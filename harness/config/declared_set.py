"""Evaluation sets that a TOML file declares, and the task of a set by its own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from harness.base.errors import DataError, HarnessError
from harness.base.files import at_home, read_bytes, read_toml
from harness.config.base import Spec
from harness.config.explain import explain
from harness.config.suites import annotations_at, has_long_captions

SUFFIX = ".toml"
SetTask = Literal["classification", "multilabel", "retrieval", "image_caption_selection"]
"""As dataset_type.txt of clip-benchmark's local layout says it."""
FIX = 'write version = "1", data = "FOLDER", and what differs from the folder\'s files; see docs/evaluation.md'


class DeclaredSet(Spec):
    """An evaluation set with a version. What it does not state comes from the text files of its folder."""

    version: str = Field(min_length=1)
    """The version of the set, such as "2026-11". Write another one when class names, templates or samples change: the
    harness refuses two contents under one name and version."""
    data: str = Field(min_length=1)
    """The folder with the shards (`test/0.tar`, `test/nshards.txt`), relative to the file."""
    task: SetTask | None = None
    """What the set measures. Default: what its folder says in `dataset_type.txt`, or classification."""
    classnames: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Class names in the order of the labels, in any language. Default: those of the folder."""
    templates: tuple[str, ...] = ()
    """Prompt templates with {c} in place of the class name. Default: those of the folder."""
    labels: Literal["imagenet-a", "imagenet-r"] | tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The labels to measure, for a subset of the classes: class name i is that of the i-th label. Samples of other
    labels are left out. "imagenet-a" and "imagenet-r" are the 200 classes of these sets among ImageNet's. Default: all
    labels."""

    @field_validator("templates")
    @classmethod
    def _templates_name_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            check_template(template)
        return templates

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, labels: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(labels, tuple) and len(set(labels)) < len(labels):
            raise ValueError("labels names a label twice; name each once")
        return labels


def read_declared(file: Path) -> DeclaredSet:
    """The set that `file` declares, with `data` as an absolute path.

    Raises:
        DataError: the file is missing or not valid, or there is no such folder.
    """
    table = read_toml(file, DataError, FIX)
    try:
        found = DeclaredSet.model_validate(table)
    except ValidationError as error:
        wrong = explain(error, DeclaredSet, where=str(file))
        raise DataError(wrong.what, where=wrong.where, fix=wrong.fix) from None
    folder = file.parent.absolute() / at_home(found.data)
    if not folder.is_dir():
        raise DataError(f"there is no folder {found.data!r}", where=f"{file}: data", fix=f"looked for {folder}")
    return DeclaredSet.model_validate({**dict(found), "data": str(folder)})


def task_at(path: Path) -> str | None:
    """The task that the files of a set at `path` state; None if there is no set, or they cannot be read."""
    try:
        if annotations_at(path) is not None:
            return "image_caption_selection"
        if path.suffix == SUFFIX and path.is_file():
            declared = read_declared(path)
            return declared.task or task_at(Path(declared.data))
        if not path.is_dir():
            return None
        if has_long_captions(path):
            return "retrieval"
        return read_bytes(path / "dataset_type.txt").decode("utf-8-sig").strip().lower() or "classification"
    except FileNotFoundError:
        return "classification"
    except (HarnessError, OSError, UnicodeDecodeError):
        return None


def check_template(template: str) -> None:
    """Refuse a prompt template that cannot take a class name.

    Raises:
        ValueError: `template` has no {c}, or other braces.
    """
    if "{c}" not in template:
        raise ValueError(f'template "{template}" has no {{c}} where the class name goes')
    if "{" in (rest := template.replace("{c}", "")) or "}" in rest:
        raise ValueError(f'template "{template}" has braces other than {{c}}')


MAIN_METRICS: Mapping[str, str] = {
    "classification": "acc1",
    "multilabel": "mean_average_precision",
    "retrieval": "image_retrieval_recall@1",
    "image_caption_selection": "acc",
}
"""By the task of a set: the metric that represents it."""
