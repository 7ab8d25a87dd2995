"""`harness publish`: an ablation and its finished runs as one folder that others can verify."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import create_text, file_sha256, read_bytes, read_json, unwritable, write_json, write_text
from harness.base.version import PACKAGE, __version__
from harness.config.ablation import Ablation
from harness.config.evaluation import Evaluation
from harness.config.experiment import Experiment
from harness.config.model import TOKENIZER
from harness.config.parts import parts_of
from harness.execute.bundle import (
    ABLATION,
    ABOUT,
    CLAIMS,
    CODE,
    DATA,
    PARTS,
    REPORT,
    STORE,
    SUMS,
    About,
    Render,
    Replacer,
    as_ablation,
    data_key,
    differences,
    files_of,
    package_files,
    planned,
    root_hash,
    sums,
)
from harness.planning.claims import planned_claims
from harness.planning.looks import note_look
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.identity import weights_id
from harness.runs.integrity import changed_files, record_digest
from harness.runs.record import DataReport, Record
from harness.runs.request import on_this_machine
from harness.runs.store import Store

_LOCKED = ("requirements.lock", "pyproject.toml")
_KEPT = ("spec.json", "record.json", "metrics.jsonl")
_ANYONE = {"root", "user", "admin", "ubuntu", "debian", "docker", "runner", "nobody", "localhost", "home", "work"}
"""Names of users and hosts that name no one."""


@dataclass(frozen=True)
class Published:
    """A bundle that was written."""

    folder: Path
    root: str
    """Its root hash, for a paper to print."""
    runs: int
    planned: int
    files: int
    replaced: int
    """Paths that were replaced."""
    claims: Mapping[str, int]
    """How many claims were planned `before`, `after` the first run that they use, or at an `unknown` time."""


def publish(
    plan: Plan, project: Project, folder: Path, render: Render, *, weights: bool = False, images: bool = False
) -> Published:
    """Write the ablation with its finished runs into `folder`, which must not exist.

    Args:
        render: makes the report from the bundle; its numbers are compared with those of a report from the store.
        weights: include the final weights.
        images: include galleries, and with them the HTML report.

    Raises:
        SpecError: the file of a part was changed since the spec was read.
        StoreError: the folder exists or cannot be written, no run has finished, a run is damaged, or a file names a
            path, host or user of this machine.
    """
    if folder.exists():
        raise StoreError("exists already", where=str(folder), fix="name a new folder")
    records = _records(plan, project.store)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            aside.chmod(0o755)
            made = _Writer(plan, project, aside, records, weights, images)
            found = made.write(render)
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    known = Counter({True: "before", False: "after", None: "unknown"}[one["planned_before_runs"]] for one in found)
    replaced = len(made.replacer.names)
    return Published(folder, root_hash(folder), len(records), len(plan.runs), made.files, replaced, known)


def _records(plan: Plan, store: Store) -> dict[str, Record]:
    """The records of the finished runs, unless something of them was changed."""
    records = {}
    for run in plan.runs.values():
        folder = store.run(run.id)
        if folder.record_file.exists():
            records[run.id] = folder.record(run.identity)
            for name in changed_files(records[run.id], folder.path):
                what = "was changed since the run ended"
                raise StoreError(what, where=str(folder.path / name), fix="restore it, or move its folder away")
    if not records:
        what = f"there is nothing to publish: none of its {len(plan.runs)} runs has finished"
        raise StoreError(what, where=plan.name, fix="`harness run` trains and evaluates them")
    return records


class _Writer:
    """Writes the files of a bundle."""

    def __init__(
        self, plan: Plan, project: Project, folder: Path, records: Mapping[str, Record], weights: bool, images: bool
    ) -> None:
        self.plan, self.project, self.folder, self.records = plan, project, folder, records
        self.kept = (*_KEPT, *(["weights.pt"] if weights else []), *(["gallery.json"] if images else []))
        self.images = images
        self.left_out = ("spikes.jsonl", *([] if weights else ["weights.pt"]))
        self.replacer = Replacer()
        self.replaced: dict[str, str] = {}
        self.files = 0

    def write(self, render: Render) -> list[dict[str, Any]]:
        """Write everything; returns the claims."""
        copy, reports = self._ablation(), self._reports()
        store = Store(self.folder / STORE)
        store.begin()
        for look in self.plan.looks:
            note_look(store, self.plan.looks_key, look)
        write_json(self.folder / ABLATION, copy, in_order=True)  # reports list arms as they are declared
        dumped = {key: one.model_dump(mode="json") for key, one in reports.items()}
        write_json(self.folder / DATA, dumped, in_order=True)
        read_back = as_ablation(read_json(self.folder / ABLATION), self.folder)  # as whoever reads the bundle does
        bundled = planned(self.plan.name, read_back, reports, self.folder)
        self._compare(bundled)
        for run in self.records:
            self._run(self.project.store.run(run), store.run(run))
        began = {run: record.started_at for run, record in self.records.items()}
        claims = self.replacer.data(planned_claims(self.plan, self.project.store, began))
        write_json(self.folder / CLAIMS, claims)
        self._code()
        self._report(render, bundled, store)
        write_json(self.folder / ABOUT, self._about().model_dump(mode="json"))
        _refuse_names(self.folder, self.project)
        create_text(self.folder / SUMS, sums(self.folder))
        self.files = len(list(files_of(self.folder)))
        return list(claims)

    def _about(self) -> About:
        commits = sorted({record.versions.get("commit", "unknown") for record in self.records.values()})
        return About(
            name=self.plan.name,
            harness=__version__,
            commits=tuple(commits),
            runs=tuple(sorted(self.records)),
            planned=len(self.plan.runs),
            left_out=self.left_out,
            replaced=self.replaced,
        )

    def _ablation(self) -> dict[str, Any]:
        """The ablation as JSON data: paths replaced, weights by their ids, sets of suites by those that are here."""
        ablation, root = self.plan.ablation, self.project.settings.evaluation_root
        here = _spelled_out(ablation.experiment.evaluation, root)
        base = Experiment.model_validate({**dict(ablation.experiment), "evaluation": here})
        table = Ablation.model_dump(ablation, mode="json") | {"experiment": base.model_dump(mode="json")}
        copy: dict[str, Any] = self.replacer.data(_with_texts(_with_weights_ids(table), self._parts()))
        return copy

    def _parts(self) -> dict[str, str]:
        """Copies the files of all parts of the user's own; returns where each is in the bundle, by its path."""
        arms = [arm.experiment for arm in self.plan.arms]
        parts = {
            part.file: part for one in (self.plan.ablation.experiment, *arms) for part in parts_of(one) if part.file
        }
        kept = {file: Path(part.kept(self.folder / PARTS).file) for file, part in parts.items()}
        return {file: copy.relative_to(self.folder).as_posix() for file, copy in kept.items()}

    def _reports(self) -> dict[str, DataReport]:
        found = {}
        for run in self.plan.runs.values():
            data = run.experiment.data
            report = self.plan.data[run.identity.fingerprint]
            scrubbed = type(data).model_validate(self.replacer.data(data.model_dump(mode="json")))
            found[data_key(scrubbed)] = DataReport.model_validate(self.replacer.data(report.model_dump(mode="json")))
        return found

    def _compare(self, bundled: Plan) -> None:
        """Make sure that the bundle's ablation has the runs of the plan, without the paths that were replaced."""
        for cell, run in self.plan.cells.items():
            if bundled.cells.get(cell) != run:
                what = f"arm {cell[0]!r} would be another run without the paths that its spec names"
                fix = "state inline what these files hold"
                raise StoreError(what, where=self.plan.name, fix=fix)

    def _run(self, source: RunFolder, target: RunFolder) -> None:
        target.path.mkdir(parents=True)
        for name in self.kept:
            if (source.path / name).exists():
                shutil.copyfile(source.path / name, target.path / name)
        if source.outcomes.is_dir():
            shutil.copytree(source.outcomes, target.outcomes, ignore=shutil.ignore_patterns(".*"))
        stated = read_json(target.record_file)
        record = self.replacer.data(stated)
        if record != stated:
            name = target.record_file.relative_to(self.folder).as_posix()
            self.replaced[name] = file_sha256(target.record_file)
            if record.get("seal"):
                record["seal"]["record"] = record_digest(record)
            write_json(target.record_file, record)

    def _code(self) -> None:
        files = [*package_files(), *(PACKAGE.parent / name for name in _LOCKED)]
        for file in files:
            if file.is_file():
                target = self.folder / CODE / file.relative_to(PACKAGE.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)

    def _report(self, render: Render, bundled: Plan, store: Store) -> None:
        """The report from the bundle alone, if its numbers are those of a report from the store."""
        ours = json.loads(render(self.plan, self.project.store, "json"))
        theirs = json.loads(text := render(bundled, store, "json"))
        if found := next(differences(ours["metrics"], theirs["metrics"], "metrics"), None):
            what = f"a report without this machine's evaluation sets has other numbers: {found}"
            fix = "publish from a store whose runs measured each set once"
            raise StoreError(what, where=self.plan.name, fix=fix)
        write_text(self.folder / REPORT / "report.json", text)
        write_text(self.folder / REPORT / "report.md", render(bundled, store, "md"))
        if self.images:
            write_text(self.folder / REPORT / "report.html", render(bundled, store, "html"))


def _spelled_out(evaluation: Evaluation, root: Path | None) -> Evaluation:
    """With the sets of its suites that are on this machine by name, because a reader elsewhere cannot know them."""
    here = [one for one in on_this_machine(evaluation, root).sets if one not in evaluation.sets]
    return Evaluation.model_validate({**dict(evaluation), "sets": (*evaluation.sets, *here)})


def _with_weights_ids(value: Any) -> Any:
    match value:
        case dict():
            return {
                key: weights_id(item) if _names_weights(key, item) else _with_weights_ids(item)
                for key, item in value.items()
            }
        case list() | tuple():
            return [_with_weights_ids(item) for item in value]
        case _:
            return value


def _with_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """JSON data with every text that is in `texts` replaced."""
    match value:
        case str():
            return texts.get(value, value)
        case dict():
            return {key: _with_texts(item, texts) for key, item in value.items()}
        case list() | tuple():
            return [_with_texts(item, texts) for item in value]
        case _:
            return value


def _names_weights(key: str, value: Any) -> bool:
    return key.rpartition(".")[2] in ("weights", TOKENIZER) and isinstance(value, str)


def _refuse_names(folder: Path, project: Project) -> None:
    """Raise StoreError if a file of the bundle names a path, the host or the user of this machine."""
    paths = {str(one) for one in _places(project) if len(one.parts) > 2}
    words = {name for name in _names() if len(name) > 2 and name.lower() not in _ANYONE}
    pattern = "|".join(
        [*map(re.escape, sorted(paths)), *(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in sorted(words))]
    )
    search = re.compile(pattern.encode()) if pattern else None
    for name in files_of(folder):
        if search and not name.startswith(f"{CODE}/") and (found := search.search(_searchable(folder / name))):
            what = f"names this machine or its user: {found[0].decode(errors='replace')!r}"
            fix = "reword it in the spec; if it is an ordinary word, set LOGNAME to another name"
            raise StoreError(what, where=name, fix=fix)


def _searchable(file: Path) -> bytes:
    """The contents of a file, and the texts that a Parquet file holds compressed."""
    content = read_bytes(file)
    if file.suffix != ".parquet":
        return content
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [column for column in pq.read_table(file).columns if pa.types.is_string(column.type)]
    return b"\n".join([content, *(str(text).encode() for column in columns for text in column.unique().to_pylist())])


def _places(project: Project) -> Iterator[Path]:
    yield from (Path.home(), Path.cwd(), project.settings.store)
    if project.settings.evaluation_root is not None:
        yield project.settings.evaluation_root


def _names() -> Iterator[str]:
    host = socket.gethostname()
    yield from (host, host.partition(".")[0])
    try:
        yield getpass.getuser()
    except (KeyError, OSError):
        return
