"""Where evaluation sets are and what kind they are, from their small files alone: no image or array library needed."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import DataError
from harness.base.files import at_home, read_bytes
from harness.config.declared_set import SUFFIX, DeclaredSet, check_template, read_declared
from harness.config.evaluation import Evaluation
from harness.config.protocols import set_name
from harness.config.suites import annotations_at, has_long_captions, places
from harness.evaluation.captioned import CaptionedImage, read_captioned
from harness.evaluation.conventions import conventional_classnames, conventional_templates, imagenet_labels
from harness.evaluation.pairs import Group, groups_of
from harness.runs.record import Task

HIDDEN_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
"""What Python's `splitlines` cuts at, besides the ends of lines."""
_DIGITS = 9
"""Of the number of shards."""
SPLIT = "test"
TRAIN, VALIDATION = "train", "val"
TASKS: Mapping[str, Task] = {
    "classification": "zeroshot_classification",
    "multilabel": "zeroshot_multilabel",
    "retrieval": "zeroshot_retrieval",
    "image_caption_selection": "image_caption_selection",
}
"""By what dataset_type.txt says."""
WITHOUT_CLASSES: tuple[Task, ...] = ("zeroshot_retrieval", "image_caption_selection")


@dataclass(frozen=True)
class Layout:
    """A set in clip-benchmark's local layout: `SPLIT/nshards.txt`, `SPLIT/{0..n-1}.tar` and text files beside them."""

    name: str
    path: Path
    task: Task
    shards: tuple[Path, ...]
    """In the order that they are read in. Of a set as published: the annotation files, then its images."""
    classnames: tuple[str, ...]
    """By label; empty for retrieval."""
    templates: tuple[str, ...]
    """Prompt templates with {c}; empty for retrieval, or where neither the set nor clip-benchmark has any."""
    split: str = SPLIT
    """The folder that its shards are in."""
    declared: Path | None = None
    """The TOML file that declares the set."""
    version: str = ""
    """The version that its TOML file states."""
    labels: tuple[int, ...] = ()
    """The labels in its shards, by label; empty where they are the same."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What looks wrong about its text files, a sentence each."""
        found = []
        for what, texts in (("class names", self.classnames), ("templates", self.templates)):
            twice = [text for text, count in Counter(texts).items() if count > 1]
            if twice:
                found.append(f"{len(twice)} {what} appear there more than once ({twice[0]!r} first)")
        return tuple(found)


def locate(
    reference: str, *, evaluation_root: Path | None, embedded: Mapping[str, Path], relative_to: Path = Path()
) -> Path:
    """The folder or file of the set that a spec calls `reference`.

    Tried in this order: the name of an `embedded` set, a folder under `evaluation_root` as mirrors call it
    (`harness.config.suites.places`), a path (relative ones from `relative_to`). References that begin with `.`, `/` or
    `~` are always paths.

    Raises:
        DataError: nothing of that name; the message lists the sets that there are.
    """
    if reference in embedded:
        return embedded[reference]
    path = relative_to / at_home(reference)
    candidates = [path]
    if evaluation_root is not None and not reference.startswith((".", "/", "~")):
        candidates = [*(evaluation_root / place for place in places(reference)), path]
    for candidate in candidates:
        if is_set(candidate):
            return candidate
    raise DataError(
        f'there is no evaluation set "{reference}"',
        where="evaluation: sets",
        fix=_remedy(reference, [candidates[0], path], sorted({*embedded, *_names_under(evaluation_root)})),
    )


def is_set(path: Path) -> bool:
    """Whether there is something at `path` that can be an evaluation set."""
    return path.is_dir() or annotations_at(path) is not None or (path.suffix == SUFFIX and path.is_file())


def describe(path: Path, name: str | None = None, split: str = SPLIT) -> Layout:
    """What the set at `path` is, from its text files and the presence of its shards; milliseconds.

    Raises:
        DataError: the layout is not complete or says something that cannot be evaluated.
    """
    name = name or set_name(str(path))
    if (annotations := annotations_at(path)) is not None:
        return describe_pairs(annotations, path, name, split)[0]
    if path.suffix == SUFFIX and path.is_file():
        return _describe_declared(path, name, split)
    if has_long_captions(path):
        return describe_captioned(path, name, split)[0]
    task = _task(path)
    classnames = () if task in WITHOUT_CLASSES else _classnames(path)
    templates = () if task in WITHOUT_CLASSES else _templates(path)
    return Layout(name, path, task, _shards(path, split), classnames, templates, split)


def _describe_declared(file: Path, name: str, split: str) -> Layout:
    """The layout of the set that a TOML file declares; what it does not state is in the text files of its folder."""
    declared = read_declared(file)
    folder = Path(declared.data)
    task = TASKS[declared.task] if declared.task else _task(folder)
    classes = () if task in WITHOUT_CLASSES else _declared_classnames(declared, folder, file)
    templates = () if task in WITHOUT_CLASSES else declared.templates or _templates(folder)
    if task in WITHOUT_CLASSES and (declared.classnames or declared.templates):
        raise DataError("a set without classes has no classnames or templates", where=str(file), fix="remove them")
    if declared.labels and task != "zeroshot_classification":
        what = "only a set with one label an image has a subset of labels"
        raise DataError(what, where=f"{file}: labels", fix="remove them")
    shards = _shards(folder, split)
    return Layout(name, folder, task, shards, classes, templates, split, file, declared.version, _labels(declared))


def _labels(declared: DeclaredSet) -> tuple[int, ...]:
    match declared.labels:
        case "imagenet-a" | "imagenet-r":
            return imagenet_labels(declared.labels)
        case _:
            return declared.labels


def _declared_classnames(declared: DeclaredSet, folder: Path, file: Path) -> tuple[str, ...]:
    names, labels = declared.classnames, _labels(declared)
    if not names and labels:
        every = _classnames(folder)
        if max(labels) >= len(every):
            what, fix = f"label {max(labels)} has no class name: the folder has {len(every)}", "state classnames"
            raise DataError(what, where=f"{file}: labels", fix=fix)
        return tuple(every[label] for label in labels)
    if labels and len(names) != len(labels):
        what = f"there are {len(names)} class names and {len(labels)} labels"
        raise DataError(what, where=f"{file}: labels", fix="give each label its class name")
    return names or _classnames(folder)


def describe_captioned(path: Path, name: str, split: str) -> tuple[Layout, tuple[CaptionedImage, ...]]:
    """The layout of a set of long captions as its authors publish it, and its samples; raises as `describe`."""
    found = read_captioned(path, split)
    files = (*found.files, *dict.fromkeys(one.image for one in found.images))
    return Layout(name, path, "zeroshot_retrieval", files, (), (), split), found.images


def describe_pairs(annotations: Path, path: Path, name: str, split: str) -> tuple[Layout, tuple[Group, ...]]:
    """The layout of a pair task as its authors publish it, and its groups; raises as `describe`."""
    if split != SPLIT:
        fix = f'measure evaluation.split = "{SPLIT}"'
        raise DataError(f"a pair task has no part {split!r}", where=str(annotations), fix=fix)
    groups = groups_of(annotations)
    images = (Path(file) for group in groups for file, _ in group.images)
    return Layout(name, path, "image_caption_selection", (annotations, *dict.fromkeys(images)), (), ()), groups


def check_templates(layout: Layout, spec: Evaluation) -> None:
    """Refuse a classification set without prompt templates, unless `spec` gives its own.

    Raises:
        DataError: there are none.
    """
    if layout.task not in WITHOUT_CLASSES and spec.templates == "set" and not layout.templates:
        raise DataError(
            "there are no prompt templates",
            where=str(layout.declared or layout.path / "zeroshot_classification_templates.txt"),
            fix='write one per line, such as "a photo of a {c}.", or give evaluation.templates',
        )


def check_similarity(layout: Layout, spec: Evaluation) -> None:
    """Refuse to measure a pair task by token-wise similarity.

    Raises:
        DataError: it is one, and `spec` asks for that.
    """
    if layout.task == "image_caption_selection" and spec.similarity != "pooled":
        what = "a pair task is not measured by token-wise similarity"
        fix = 'leave evaluation.similarity at "pooled" and add @token_wise to the other sets'
        raise DataError(what, where=str(layout.path), fix=fix)


def _remedy(reference: str, tried: list[Path], known: list[str]) -> str:
    looked = "looked for " + " and ".join(str(path) for path in dict.fromkeys(tried))
    near = difflib.get_close_matches(reference, known, n=1)
    if near:
        return f'did you mean "{near[0]}"? ({looked})'
    return f"known sets: {', '.join(known) or 'none'} ({looked})"


def _names_under(root: Path | None) -> list[str]:
    """Sets at most two folders below `root`, named as a spec would name them."""
    if root is None or not root.is_dir():
        return []
    pattern = f"{SPLIT}/nshards.txt"
    found = [*root.glob(f"*/{pattern}"), *root.glob(f"*/*/{pattern}")]
    return [file.parent.parent.relative_to(root).as_posix() for file in found]


def _lines(file: Path) -> list[str] | None:
    """The stripped lines of `file` without a byte order mark, or None where there is no such file.

    clip-benchmark also ends lines at separators that editors do not show. They are refused.
    """
    try:
        text = read_bytes(file).decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", where=str(file), fix="repair the file") from error
    if hidden := HIDDEN_SEPARATORS.search(text):
        line = text.count("\n", 0, hidden.start()) + 1
        what = f"line {line} holds the line separator U+{ord(hidden[0]):04X}, which cuts it in two"
        raise DataError(what, where=str(file), fix="remove it")
    return [line.strip() for line in text.splitlines()]


def _task(path: Path) -> Task:
    kind = " ".join(_lines(path / "dataset_type.txt") or ["classification"]).strip().lower()
    if kind not in TASKS:
        raise DataError(
            f'"{kind}" sets are not evaluated',
            where=str(path / "dataset_type.txt"),
            fix='write "retrieval", "classification", "multilabel" or "image_caption_selection"',
        )
    return TASKS[kind]


def _shards(path: Path, split: str) -> tuple[Path, ...]:
    counter = path / split / "nshards.txt"
    lines = _lines(counter)
    if lines is None:
        raise DataError(
            "is missing",
            where=str(counter),
            fix=f"write the number of shards into it; they are {split}/0.tar, {split}/1.tar, ...",
        )
    if not lines or not lines[0].isdecimal() or len(lines[0]) > _DIGITS or int(lines[0]) < 1:
        raise DataError("does not contain a number of shards", where=str(counter), fix="write it, for example 1")
    shards = []
    for index in range(int(lines[0])):
        shard = path / split / f"{index}.tar"
        if not shard.is_file():
            raise DataError("the shard is missing", where=str(shard), fix=f"restore it or correct {counter}")
        shards.append(shard)
    beyond = path / split / f"{len(shards)}.tar"
    if beyond.is_file():
        what = f"says {len(shards)}, and there is {beyond.name} too"
        raise DataError(what, where=str(counter), fix="write the number of shards, or remove the others")
    return tuple(shards)


def _classnames(path: Path) -> tuple[str, ...]:
    file = path / "classnames.txt"
    lines = _lines(file) or conventional_classnames(path)
    if not lines:
        raise DataError(
            "a classification set needs class names",
            where=str(file),
            fix='write one per line, in the order of the labels, or "retrieval" into dataset_type.txt',
        )
    if "" in lines:
        raise DataError(f"line {lines.index('') + 1} is empty", where=str(file), fix="write one class name per line")
    return tuple(lines)


def _templates(path: Path) -> tuple[str, ...]:
    file = path / "zeroshot_classification_templates.txt"
    lines = _lines(file) or conventional_templates(path)
    for line in lines:
        try:
            check_template(line)
        except ValueError as error:
            fix = 'write one per line, such as "a photo of a {c}."'
            raise DataError(str(error), where=str(file), fix=fix) from error
    return tuple(lines)
