"""A published ablation: one folder that others can verify, without paths, hosts or user names.

SHA256SUMS       a digest of every other file, as `sha256sum -c` reads it; its own digest is the root hash
bundle.json      what the bundle is: name, versions, runs, what was left out, what was replaced
ablation.json    the ablation with everything that it extends; paths replaced by `elsewhere/NAME`
data.json        what each data set contained: fingerprint, samples, what was left out
claims.json      the claims, when they were first planned, and when the first run that they use was started
code/            the harness and its lock file
parts/           the Python files of parts of the user's own, by their content, with their descriptions
store/runs/      the finished runs: spec, record, metrics, outcomes; weights and images only on request
report/          the report, as made from this folder alone
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.errors import StoreError
from harness.base.files import file_sha256, read_json, read_text
from harness.base.version import PACKAGE
from harness.config.ablation import Ablation
from harness.config.data import Data
from harness.config.overrides import Table, Whole, expand
from harness.planning.looks import read_looks
from harness.planning.plan import Plan, make_plan
from harness.runs.record import DataReport
from harness.runs.settings import Settings
from harness.runs.store import Store

BUNDLE_VERSION = 1
SUMS, ABOUT, ABLATION, DATA, CLAIMS = "SHA256SUMS", "bundle.json", "ablation.json", "data.json", "claims.json"
CODE, STORE, REPORT, PARTS = "code", "store", "report", "parts"
Render = Callable[[Plan, Store, Literal["json", "md", "html"]], str]
"""Makes the report in a format."""
_FIX = "ask its publisher for an undamaged copy"
_PART_FILE = re.compile(rf"{PARTS}/[0-9a-f]{{16}}/[^/]+\.py")
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n\r\\]+)")


class About(BaseModel):
    """The contents of bundle.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = BUNDLE_VERSION
    name: str
    harness: str
    commits: tuple[str, ...]
    """Commits of the code that the runs were made with, as far as their records say."""
    runs: tuple[str, ...]
    """The finished runs, which are in the bundle."""
    planned: int
    """Number of runs that the ablation asks for, teachers included."""
    left_out: tuple[str, ...]
    """Names of run files that are sealed and not in the bundle."""
    replaced: Mapping[str, str]
    """Files in which paths were replaced, with the SHA-256 of the original."""


@dataclass(frozen=True)
class Bundle:
    """A published ablation in a folder."""

    folder: Path
    about: About
    plan: Plan
    claims: list[dict[str, Any]]

    @property
    def store(self) -> Store:
        """The store with its runs."""
        return Store(self.folder / STORE)


def files_of(folder: Path) -> Iterator[str]:
    """Every file below `folder` except the sums, as a path relative to it.

    Raises:
        StoreError: something is neither a plain file nor a folder.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError("is neither a file nor a folder", where=str(path), fix=_FIX)
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != SUMS:
            yield name


def sums(folder: Path) -> str:
    """The contents of SHA256SUMS."""
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in files_of(folder))


def root_hash(folder: Path) -> str:
    """The digest that stands for the whole bundle."""
    return file_sha256(folder / SUMS)


def changed(folder: Path) -> list[str]:
    """What differs from SHA256SUMS, a sentence each.

    Raises:
        StoreError: SHA256SUMS cannot be read.
    """
    try:
        lines = read_text(folder / SUMS).splitlines()
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot be read ({error})", where=str(folder / SUMS), fix=_FIX) from None
    found = [_SUM.fullmatch(line) for line in lines]
    problems = [f"{folder / SUMS}: line {number} is damaged" for number, one in enumerate(found, 1) if one is None]
    stated, there = {one[2]: one[1] for one in found if one is not None}, set(files_of(folder))
    problems += [f"{folder / name} is missing" for name in sorted(stated.keys() - there)]
    problems += [f"{folder / name} was added" for name in sorted(there - stated.keys())]
    both = sorted(stated.keys() & there)
    return problems + [f"{folder / name} was changed" for name in both if file_sha256(folder / name) != stated[name]]


def read_bundle(folder: Path) -> Bundle:
    """Read the bundle in `folder` and plan its ablation, from nothing else than the bundle.

    Raises:
        StoreError: a file is missing or damaged.
        SpecError: this harness cannot plan the ablation.
    """
    try:
        about = About.model_validate(read_json(folder / ABOUT))
        ablation = as_ablation(read_json(folder / ABLATION), folder)
        reports = {key: DataReport.model_validate(one) for key, one in read_json(folder / DATA).items()}
        claims = read_json(folder / CLAIMS)
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        what = f"holds a file that is damaged, or of another version ({str(error).splitlines()[0]})"
        raise StoreError(what, where=str(folder), fix=_FIX) from None
    if about.version > BUNDLE_VERSION:
        fix = "verify it with the harness in its folder code/"
        raise StoreError(f"was written by a newer harness ({about.harness})", where=str(folder / ABOUT), fix=fix)
    return Bundle(folder, about, planned(about.name, ablation, reports, folder), claims)


def as_ablation(table: Mapping[str, Any], folder: Path) -> Ablation:
    """The ablation of ablation.json. Contents of files, which the spec of an arm named, replace what is below them.

    Args:
        folder: the bundle, whose files of parts it names.
    """
    table = _with_parts_below(table, folder)
    arms = {name: _marked(arm) for name, arm in table["arms"].items()}
    return Ablation.model_validate({**table, "base": _marked(table["base"]), "arms": arms})


def _with_parts_below(value: Any, folder: Path) -> Any:
    match value:
        case str() if _PART_FILE.fullmatch(value):
            return str(folder.resolve() / value)
        case dict():
            return {key: _with_parts_below(item, folder) for key, item in value.items()}
        case list():
            return [_with_parts_below(item, folder) for item in value]
        case _:
            return value


def _marked(table: Mapping[str, Any]) -> Table:
    marked = expand(table)
    for section in ("model", "teacher"):
        if isinstance(found := marked.get(section), dict) and isinstance(found.get("config"), dict):
            marked[section] = {**found, "config": Whole(found["config"])}
    if isinstance(teacher := marked.get("teacher"), dict) and {"kind", "experiment"} <= teacher.keys():
        marked["teacher"] = Whole(teacher)
    return marked


def planned(name: str, ablation: Ablation, reports: Mapping[str, DataReport], folder: Path) -> Plan:
    """The plan of a bundle's ablation.

    Args:
        reports: by `data_key`.
    """

    def inspect(data: Data) -> DataReport:
        if (found := reports.get(data_key(data))) is None:
            raise StoreError("does not have the data of an arm", where=str(folder / DATA), fix=_FIX)
        return found

    looks = partial(read_looks, Store(folder / STORE))
    plan = make_plan(ablation, name=name, where=str(folder / ABLATION), inspect=inspect, read_looks=looks)
    plan.settings = Settings(store=folder / STORE, tracking_uri="none")
    return plan


def data_key(data: Data) -> str:
    """By which data.json knows a data set: its spec as JSON."""
    return json.dumps(data.model_dump(mode="json"), sort_keys=True)


def package_files(package: Path = PACKAGE) -> list[Path]:
    """The files of the code."""
    return sorted(
        file
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    )


def is_this_code(folder: Path) -> bool:
    """Whether the bundle's code is the code that runs now."""
    ours = {file.relative_to(PACKAGE.parent).as_posix(): file for file in package_files()}
    theirs = {name.removeprefix(f"{CODE}/") for name in files_of(folder) if name.startswith(f"{CODE}/{PACKAGE.name}/")}
    return ours.keys() == theirs and all(
        file_sha256(file) == file_sha256(folder / CODE / name) for name, file in ours.items()
    )


@dataclass
class Replacer:
    """Replaces paths of this machine and addresses with a user's name, the same ones always by the same text."""

    names: dict[str, str] = field(default_factory=dict)
    """By path: what it is called in the bundle."""

    _PATH = re.compile(r"(?<![\w.:/<])(?:~[\w.-]*|/[^\s/'\",;()\[\]]+)(?:/[^\s/'\",;()\[\]]+)+/?")
    _ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://[^\s'\",;]+", re.I)

    def data(self, value: Any) -> Any:
        """JSON data with every path replaced."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(str(key)): self.data(item) for key, item in value.items()}
            case list() | tuple():
                return [self.data(item) for item in value]
            case _:
                return value

    def text(self, value: str) -> str:
        """A text with every path replaced."""
        if value.startswith(("/", "~/")) and "\n" not in value:
            return "::".join(self._named(part) for part in value.split("::"))
        value = self._ADDRESS.sub(lambda found: self._address(found[0]), value)
        return self._PATH.sub(lambda found: self._named(found[0]), value)

    def _address(self, address: str) -> str:
        """A public address without credentials and query; of any other address, the last part."""
        scheme, _, rest = address.partition("://")
        host, _, path = rest.partition("?")[0].partition("/")
        host = host.rpartition("@")[2]
        is_public = scheme.lower() in ("http", "https", "hf") and _is_public(host.partition(":")[0])
        return f"{scheme}://{host}/{path}".rstrip("/") if is_public else self._named(address)

    def _named(self, path: str) -> str:
        if path not in self.names:
            name = PurePosixPath(path.partition("?")[0]).name or "root"
            taken, count = set(self.names.values()), 2
            found = f"elsewhere/{name}"
            while found in taken:
                found, count = f"elsewhere/{count}/{name}", count + 1
            self.names[path] = found
        return self.names[path]


def _is_public(host: str) -> bool:
    label = host.rpartition(".")[2].lower()
    return "." in host and label.isalpha() and label not in ("local", "internal", "lan", "intranet", "corp", "home")


def differences(stated: Any, again: Any, where: str = "") -> Iterator[str]:
    """Where two reports as JSON data differ: numbers by more than rounding, texts at all."""
    match stated, again:
        case dict(), dict():
            for key in stated.keys() | again.keys():
                yield from differences(stated.get(key), again.get(key), f"{where}.{key}" if where else key)
        case list(), list() if len(stated) == len(again):
            for place, pair in enumerate(zip(stated, again, strict=True)):
                yield from differences(*pair, f"{where}[{place}]")
        case (int() | float(), int() | float()) if not isinstance(stated, bool) and not isinstance(again, bool):
            if not math.isclose(stated, again, rel_tol=1e-9, abs_tol=1e-9):
                yield f"{where} is {stated}, made again {again}"
        case _:
            if stated != again:
                yield f"{where} is {_short(stated)}, made again {_short(again)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
