"""A run's id: a short hash of everything that can change its result and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import open_plain
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher, flatten, unknown_teacher
from harness.config.model import tokenizer_of, with_tokenizer

ID_LENGTH = 12


@dataclass(frozen=True)
class Identity:
    """What a run computes, independent of where and how it is executed."""

    experiment: Experiment
    fingerprint: str
    """Fingerprint of the data's content."""
    teacher: str | None

    @cached_property
    def id(self) -> str:
        """Hash of the payload."""
        return digest(self.payload)

    @cached_property
    def payload(self) -> dict[str, Any]:
        """What the id hashes: the science without fields at their default, data fingerprint, teacher, seed."""
        return self._complete(self.experiment.science())

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The payload with every default written out. It is compared with the stored one when an id is used again."""
        return self._complete(self.experiment.science(defaults=True))

    def _complete(self, science: dict[str, Any]) -> dict[str, Any]:
        complete = {**science, "data": {**science.get("data", {}), "fingerprint": self.fingerprint}}
        if weights := complete.get("model", {}).get("weights"):
            complete["model"] = {**complete["model"], "weights": weights_id(weights)}
        if config := complete.get("model", {}).get("config"):
            complete["model"] = {**complete["model"], "config": _portable(config)}
        complete.pop("teacher", None)
        return complete | ({"teacher": self.teacher} if self.teacher else {})


def identify(experiment: Experiment, *, fingerprint: str, teacher: str | None) -> Identity:
    """The identity of one run of `experiment` (with its seed) on data of that fingerprint.

    Args:
        teacher: id of the teacher's run or of its weights (`teacher_id`); None if no teacher is used.
    """
    return Identity(experiment, fingerprint, teacher)


def digest(data: Any, length: int = ID_LENGTH) -> str:
    """The first `length` hex digits of the SHA-256 of the canonical JSON of `data`."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def teacher_id(experiment: Experiment, run_of: str | None) -> str | None:
    """How a run names its teacher: the id of the teacher's run, or model and digest of its weights.

    What the teacher sees is part of it, unless that is its own evaluation transform.
    """
    if experiment.teacher is None or not experiment.uses_teacher:
        return None
    match experiment.teacher:
        case ExperimentTeacher():
            name = run_of
        case OpenClipTeacher(model=model, weights=weights, config=config):
            name = f"{model if config is None else digest(_portable(config))}:{weights_id(weights)}"
        case _:
            raise unknown_teacher(experiment.teacher)
    resize = experiment.teacher.resize
    return name if resize is None or name is None else f"{name}:resize={resize}"


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """A model configuration whose tokenizer, if it is a folder, is named by its content."""
    name = tokenizer_of(config)
    return config if name is None or not Path(name).is_dir() else with_tokenizer(config, weights_id(name))


def weights_id(weights: str) -> str:
    """The id of weights: a tag itself, or a digest of a checkpoint file's size and first and last MiB, not its path."""
    file = Path(weights)
    if file.is_dir():  # a model folder: the name and size of each file, and the ends of its weights
        parts = [[one.name, weights_id(str(one))] for one in sorted(file.iterdir()) if one.is_file()]
        return digest(parts)
    if not file.is_file():
        return weights
    status = file.stat()
    return _file_digest(file, status.st_size, status.st_mtime_ns)


@cache
def _file_digest(file: Path, size: int, _modified_ns: int) -> str:
    with open_plain(file) as stream:
        head = stream.read(1 << 20)
        stream.seek(max(size - (1 << 20), 0))
        return hashlib.sha256(head + stream.read() + str(size).encode()).hexdigest()[:ID_LENGTH]


def check_same(stored: dict[str, Any], identity: Identity, where: Path) -> None:
    """Check that a run folder's resolved spec equals that of `identity`, which has the same id.

    They differ if a default has changed in the code, because the id leaves defaults out. Fields that the code has
    gained since then do not count as a difference.

    Raises:
        StoreError: they differ; the message contains the diff.
    """
    resolved = identity.resolved
    changes = [] if stored == resolved else list(_differences(flatten(stored), flatten(resolved)))
    if changes:
        raise StoreError(
            f"run {identity.id} was made with other defaults: {'; '.join(changes)}",
            where=str(where),
            fix="state the old value in the spec, or raise the spec's `algorithm` version, or move the folder away",
        )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key]:
            yield f"{key} {old[key]!r} -> {new[key]!r}"
