"""The shipped files: experiments, ablations, cluster profiles, schemas, and the starter of a new project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import SpecError
from harness.base.files import write_text
from harness.base.version import PACKAGE, SHIPPED_PACKAGE

STARTER = PACKAGE / "planning" / "starter"
SHIPPED = SHIPPED_PACKAGE if SHIPPED_PACKAGE.is_dir() else PACKAGE.parent
"""Folder of the shipped files: in an installed package, else the checkout."""
_LISTED = ("ablations/*.toml", "ablations/*/*.toml", "experiments/*.toml", "slurm/*.toml")
_OF_A_CHECKOUT = "slurm/testcluster.toml"
_NAMED = re.compile(r'#:schema (\S+)|"([^"\n]+\.toml)"')
_QUESTION = re.compile(r'^question = "(.*)"$', flags=re.MULTILINE)
_COMMENT = re.compile(r"^# (.*)$", flags=re.MULTILINE)


class Example(NamedTuple):
    """A shipped file."""

    name: str
    """Its path below the shipped files, without `.toml`."""
    file: Path
    about: str
    """Its question, or its first comment."""


def examples() -> list[Example]:
    """All shipped ablations, searches, experiments and cluster profiles."""
    files = [file for pattern in _LISTED for file in sorted(SHIPPED.glob(pattern))]
    named = {str(file.relative_to(SHIPPED)): file for file in files}
    return [Example(name.removesuffix(".toml"), file, _about(file)) for name, file in named.items()
            if name != _OF_A_CHECKOUT]  # fmt: skip


def example(name: str) -> Example:
    """The shipped file of this name: a path such as `ablations/digits`, or its last parts, ablations first.

    Raises:
        SpecError: there is none.
    """
    stated, known = name.removesuffix(".toml"), examples()
    for one in known:
        if f"/{one.name}".endswith(f"/{stated}"):
            return one
    raise SpecError("there is no shipped file of this name", where=name, fix="`harness examples` lists them")


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copy a shipped file and every file that it names into `folder`; returns the copies, the named file's first.

    Raises:
        SpecError: there is no such file, or another file is in the way.
    """
    return _copied({file.relative_to(SHIPPED): file for file in _with_named(example(name).file)}, folder)


def init(folder: Path) -> list[Path]:
    """Write a new project into `folder`: harness.toml, an ablation, its experiment, a cluster profile and the schemas.

    Raises:
        SpecError: a file of the same name and other content is in the way.
    """
    started = {file.relative_to(STARTER): file for file in sorted(STARTER.rglob("*.toml"))}
    schemas = {file.relative_to(SHIPPED): file for file in sorted((SHIPPED / "schemas").glob("*.json"))}
    profile = {Path("slurm/mycluster.toml"): SHIPPED / "slurm" / "one_gpu_nodes.toml"}
    return _copied({Path("harness.toml"): SHIPPED / "harness.toml", **started, **profile, **schemas}, folder)


def _with_named(file: Path) -> Iterator[Path]:
    """The file, and all shipped files that it names, directly or not."""
    found, ahead = {file}, [file]
    while ahead:
        one = ahead.pop(0)
        yield one
        named = ["".join(match.groups(default="")) for match in _NAMED.finditer(one.read_text(encoding="utf-8"))]
        new = [path for path in ((one.parent / name).resolve() for name in named) if path.is_file()]
        ahead += [path for path in dict.fromkeys(new) if path not in found]
        found |= set(new)


def _copied(files: dict[Path, Path], folder: Path) -> list[Path]:
    texts = {folder / name: source.read_text(encoding="utf-8") for name, source in files.items()}
    for target, text in texts.items():
        if target.exists() and (not target.is_file() or target.read_text(encoding="utf-8") != text):
            raise SpecError("exists already, with other content", where=str(target), fix="choose another folder")
    for target, text in texts.items():
        if not target.exists():
            write_text(target, text)
    return list(texts)


def _about(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    found = _QUESTION.search(text) or _COMMENT.search(text)
    return found[1] if found else ""
