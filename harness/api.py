"""The Python API. It does what the command does, prints nothing, installs no signal handler, and works in any thread.

Each function takes a spec: the path of a TOML file, or what `load` or `plan` returned. A path and the object loaded
from it mean the same plan in the same store: the nearest harness.toml at or above the file decides. A spec made in
Python (`Ablation.model_validate({...})`) belongs to the project of the working folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeAlias

from harness.base.errors import SpecError
from harness.config.ablation import Ablation
from harness.config.load import is_search, load_search
from harness.config.load import load as load_ablation
from harness.config.search import Search
from harness.execute.executor import Progress
from harness.execute.run import Confirm, Outcome, is_profile, start_in_background, submit
from harness.execute.run import run as carry_out
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.record import EvaluationResult
from harness.runs.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.execute.slurm.jobs import Cancelled
    from harness.reporting import Format, Results
    from harness.searching.driver import Snapshot
    from harness.searching.session import SearchOutcome, SearchRequest
    from harness.tracking import SyncResult

__all__ = ["Spec", "evaluate", "load", "plan", "project", "report", "results", "run", "search", "sync"]

Spec: TypeAlias = str | Path | Ablation | Search | Plan


def load(path: str | Path, assignments: Sequence[str] = ()) -> Ablation | Search:
    """The ablation or the search in a TOML file; an experiment file is an ablation of one arm.

    Args:
        assignments: changes like `"train.duration=300 steps"`, laid over the base experiment.

    Raises:
        SpecError: the file is missing or not valid.
    """
    spec = load_search(path, assignments) if is_search(path) else load_ablation(path, assignments)
    spec.remember_file(Path(path).absolute())
    return spec


def project(spec: Spec | None = None) -> Project:
    """The project that a spec belongs to: its settings and its store.

    Raises:
        SpecError: harness.toml or a HARNESS_ variable is not valid.
    """
    if isinstance(spec, Plan):
        return Project(spec.settings, Store(spec.settings.store, spec.settings.evaluation_root))
    file = _file(spec)
    return Project.at(None if file is None else file.parent)


def plan(spec: Spec, assignments: Sequence[str] = (), *, provisional: bool = False) -> Plan:
    """Every run that a spec needs; of a search, the configurations that it has begun, each an arm.

    Args:
        provisional: plan although data is not on this machine; such runs have provisional ids.

    Raises:
        SpecError: the spec is not valid.
        DataError: its data cannot be read.
        StoreError: the search has no configuration yet.
    """
    if isinstance(spec, Plan):
        return spec
    if (request := _search_request(spec, assignments)) is not None:
        return request.begun()
    if assignments and isinstance(spec, Ablation):
        fix = "give them to `load`, or change the object"
        raise SpecError("assignments are laid over files", where="assignments", fix=fix)
    assert isinstance(spec, str | Path | Ablation), "searches were dealt with"
    return project(spec).plan(spec, assignments, provisional=provisional)


def run(
    spec: Spec,
    assignments: Sequence[str] = (),
    *,
    on: str | None = None,
    jobs: int | None = None,
    max_gpu_hours: float | None = None,
    detach: bool = False,
    confirm: Confirm | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Event | None = None,
    verbose: bool = False,
) -> Outcome:
    """Train and evaluate every missing run once; the result is true if every run is done.

    A KeyboardInterrupt stops cleanly (running runs write a checkpoint first) and is raised again.

    Args:
        on: `local` (processes of this machine), `inline` (this process), or the file of a cluster profile. Default:
            `profile` of harness.toml.
        jobs: runs at a time on this machine.
        max_gpu_hours: budget of a cluster's jobs.
        detach: return at once. Jobs go on by themselves; on this machine a command in the background goes on.
        confirm: asked where the budget may not suffice; without it, that is an error.
        on_progress: gets a snapshot a few times a second.
        stop: once set, by another thread, running runs write a checkpoint and leave.
        verbose: let `inline` print and handle signals in the calling thread, as the command does.

    Raises:
        SpecError: the spec or the profile is not valid, or the budget is not enough.
        DataError: the data cannot be read.
        DispatchError: jobs of a cluster have some of the runs, or none can be started.
        StoreError: the store cannot be written, or holds a run of other defaults.
    """
    planned = plan(spec, assignments)
    at = project(planned)
    target = on or at.settings.profile
    if detach:
        return _detached(spec, assignments, planned, at, target, jobs, max_gpu_hours, confirm)
    return carry_out(
        planned,
        at,
        target,
        jobs=jobs,
        max_gpu_hours=max_gpu_hours,
        confirm=confirm,
        on_progress=on_progress,
        stop=stop,
        verbose=verbose,
    )


def search(
    spec: str | Path | Search,
    assignments: Sequence[str] = (),
    *,
    on: str | None = None,
    jobs: int | None = None,
    storage: str | None = None,
    on_progress: Callable[[Snapshot], None] | None = None,
    on_confirm: Callable[[Plan, Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    stop: Event | None = None,
    verbose: bool = False,
) -> SearchOutcome:
    """Search until the budget is used up and confirm the winner on fresh seeds; goes on where an earlier one stopped.

    Args:
        on, jobs, stop, verbose: as for `run`.
        storage: database for Optuna; by default a journal in the store.
        on_progress, on_confirm, on_note: see `harness.searching.session.SearchRequest.carry_out`.

    Raises:
        SpecError, DataError, DispatchError, StoreError: as `run`; another process drives the search.
    """
    request = search_request(spec, assignments, on=on, jobs=jobs, storage=storage)
    return request.carry_out(
        on_progress=on_progress, on_confirm=on_confirm, on_note=on_note, stop=stop, verbose=verbose
    )


def search_request(
    spec: str | Path | Search,
    assignments: Sequence[str] = (),
    *,
    on: str | None = None,
    jobs: int | None = None,
    storage: str | None = None,
) -> SearchRequest:
    """A search and how to carry it out; see `search`.

    Raises:
        SpecError: it is no search, or it is not valid.
    """
    from harness.searching.session import SearchRequest

    if assignments and isinstance(spec, Search):
        fix = "give them to `load`, or change the object"
        raise SpecError("assignments are laid over files", where="assignments", fix=fix)
    at, file = project(spec), _file(spec)
    loaded = spec if isinstance(spec, Search) else load_search(spec, assignments)
    name = "search" if file is None else file.stem
    return SearchRequest(loaded, name, at, on or at.settings.profile, jobs, storage, str(file or name))


def report(spec: Spec, format: Format = "md", assignments: Sequence[str] = ()) -> str:
    """The report on the records that are there, as text of that format; of a search, what it has found so far.

    Raises:
        HarnessError: the spec is not valid, or a record is damaged.
    """
    if (request := _search_request(spec, assignments)) is not None:
        from harness.searching.page import as_html
        from harness.searching.report import render as render_search

        if format in ("latex", "csv", "json"):
            fix = "ask for md, terminal or html, or take `results`"
            raise SpecError(f"is a search, which has no report as {format}", where=request.where, fix=fix)
        return as_html(request.look()) if format == "html" else render_search(request.look())
    from harness.reporting import render

    return render(_collected(spec, assignments), format)


def results(spec: Spec, assignments: Sequence[str] = ()) -> pd.DataFrame:
    """A row for each run and metric: arm, label, seed, run_id, state, metric, value, standard_error, samples,
    protocol_id. Values are unrounded, in the metric's own scale. A run without results has one row without a metric.

    Raises:
        HarnessError: the spec is not valid, or a record is damaged.
    """
    import pandas as pd

    from harness.reporting.formats.machine import HEADS, rows

    return pd.DataFrame.from_records(list(rows(_collected(spec, assignments))), columns=list(HEADS))


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    sets: str | Sequence[str],
    *,
    protocols: Sequence[str] = (),
    model: str | None = None,
    processes: int | None = None,
) -> dict[str, tuple[EvaluationResult, ...]]:
    """Measure checkpoints on evaluation sets, with the averages of suites; by checkpoint.

    Args:
        checkpoints: run ids, or weights files with `model`; `NAME=FILE` names one.
        sets: names or paths of sets, or suites, of which the sets of this machine are measured.
        protocols: also measure as prior work did: `slip`, `alip`...
        model: open_clip's name of the model of weights files.
        processes: how many of this machine measure together; default: one for each GPU.

    Raises:
        SpecError: a weights file without a model name, an unknown protocol, or two checkpoints under one name.
        DataError: an evaluation set is missing or damaged.
        ModelError: the weights do not fit.
        StoreError: there is no such run.
    """
    from harness.execute.evaluate import evaluation_of, present, sources_of, with_averages

    stated = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    at = project()
    evaluation = present(evaluation_of([sets] if isinstance(sets, str) else sets, protocols), at)
    sources = sources_of(at, [str(one) for one in stated], model)
    return {name: with_averages(source.measure(evaluation, processes)) for name, source in sources.items()}


def sync(
    spec: Spec,
    assignments: Sequence[str] = (),
    *,
    pages: Sequence[Path] = (),
    under_report: bool = False,
    limit_s: float = float("inf"),
) -> SyncResult:
    """Import the records of a spec's runs into MLflow; importing twice changes nothing.

    Args:
        pages: files of the report, attached to a run of their own.
        under_report: make the arms children of that run, as the trials of a search are.
        limit_s: begin no further run after that many seconds.

    Raises:
        SpecError: tracking is off.
        TrackingError: the server is dead or too slow, or refuses the records.
    """
    from harness.tracking import sync as import_records

    searched = _search_request(spec, assignments) is not None
    planned = plan(spec, assignments)
    at = project(planned)
    under = under_report or searched
    return import_records(planned, at.store, _tracking(at), pages=pages, under_report=under, limit_s=limit_s)


def ui_command(port: int = 5000) -> list[str]:
    """The command that serves the MLflow UI of the working folder's project.

    Raises:
        SpecError: tracking is off.
    """
    from harness.tracking import ui_command as command

    return command(_tracking(project()), port)


def _tracking(at: Project) -> str:
    if at.settings.tracking is None:
        raise SpecError('tracking is off (tracking_uri = "none")', where="harness.toml", fix="set a URI")
    return at.settings.tracking


def cancel_vanished(spec: Spec, assignments: Sequence[str] = ()) -> Cancelled:
    """Cancel jobs of the spec's ablation whose runs it no longer asks for."""
    from harness.execute.slurm.jobs import cancel_jobs, vanished

    planned = plan(spec, assignments, provisional=True)
    store = project(planned).store
    return cancel_jobs(vanished(planned, store), store)


def _collected(spec: Spec, assignments: Sequence[str]) -> Results:
    from harness.reporting import collect

    planned = plan(spec, assignments, provisional=True)
    return collect(planned, project(planned).store)


def _detached(
    spec: Spec,
    assignments: Sequence[str],
    planned: Plan,
    at: Project,
    target: str,
    jobs: int | None,
    max_gpu_hours: float | None,
    confirm: Confirm | None,
) -> Outcome:
    """Submit, and leave what the queue does not take, or what runs on this machine, to a command in the background."""
    outcome = Outcome(planned, Progress(0, len(planned.runs)))
    if is_profile(target):
        outcome = submit(planned, at, target, max_gpu_hours=max_gpu_hours, confirm=confirm)
        if outcome.in_jobs:
            return outcome
    if (file := _file(spec)) is None:
        fix = "write the spec to a file, or run it without `detach`"
        raise SpecError("a spec made in Python cannot go on in the background", where="detach", fix=fix)
    arguments = background_arguments(file, assignments, target, jobs)
    if is_profile(target) and max_gpu_hours is not None:
        arguments += ["--max-gpu-hours", str(max_gpu_hours), "--yes"]
    background = start_in_background("run", arguments, at.store.root / f"{planned.name}.log")
    return Outcome(planned, outcome.progress, outcome.on_cluster, False, outcome.vanished, background)


def background_arguments(file: Path, assignments: Sequence[str], target: str, jobs: int | None) -> list[str]:
    """The arguments of a command that goes on in the background."""
    sets = [part for one in assignments for part in ("--set", one)]
    return [str(file.resolve()), *sets, "--on", target, *(["--jobs", str(jobs)] if jobs else [])]


def _search_request(spec: Spec, assignments: Sequence[str]) -> SearchRequest | None:
    """The request for a search; None for anything else."""
    if isinstance(spec, Search) or (isinstance(spec, str | Path) and is_search(spec)):
        return search_request(spec, assignments)
    return None


def _file(spec: Spec | None) -> Path | None:
    """The file of a spec, where it has one."""
    if isinstance(spec, str | Path):
        return Path(spec)
    return spec.file if isinstance(spec, Ablation | Search | Plan) else None
