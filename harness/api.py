"""The Python API. It does what the command does, prints nothing, installs no signal handler, and works in any thread.

Each function takes a spec: the path of a TOML file, or an object that `load` or `plan` returned. A path and the object
loaded from it give the same plan in the same store, which the nearest harness.toml at or above the file names. A spec
created in Python (`Ablation.model_validate({...})`) belongs to the project of the working folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeAlias

from harness.base.boundary import door
from harness.base.errors import SpecError
from harness.config.ablation import Ablation
from harness.config.load import is_search, load_search
from harness.config.load import load as load_ablation
from harness.config.search import Search
from harness.execute.executor import Progress
from harness.execute.run import Confirm, Outcome, is_profile, remember, start_in_background, submit
from harness.execute.run import run as carry_out
from harness.planning.looks import InterimLook
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.noted import find_run
from harness.runs.record import EvaluationResult
from harness.runs.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from harness.execute.evaluate import MtebModel
    from harness.execute.publish import Published
    from harness.execute.slurm.jobs import Cancelled
    from harness.execute.verify import Verification
    from harness.reporting import Format, Results
    from harness.searching.driver import Snapshot
    from harness.searching.session import SearchOutcome, SearchRequest
    from harness.tracking import SyncResult

__all__ = [
    "Spec",
    "evaluate",
    "load",
    "mteb_model",
    "plan",
    "project",
    "publish",
    "report",
    "results",
    "run",
    "search",
    "smoke",
    "sync",
    "verify",
]

Spec: TypeAlias = str | Path | Ablation | Search | Plan


@door
def load(path: str | Path, assignments: Sequence[str] = ()) -> Ablation | Search:
    """Load the ablation or the search in a TOML file. An experiment file is an ablation with one arm.

    Args:
        assignments: changes to the base experiment, such as `"train.duration=300 steps"`.

    Raises:
        SpecError: the file is missing or not valid.
    """
    spec = load_search(path, assignments) if is_search(path) else load_ablation(path, assignments)
    spec.remember_file(Path(path).absolute())
    return spec


@door
def project(spec: Spec | None = None) -> Project:
    """The project that a spec belongs to: its settings and its store.

    Raises:
        SpecError: harness.toml or a HARNESS_ variable is not valid.
    """
    if isinstance(spec, Plan):
        return Project(spec.settings, Store(spec.settings.store, spec.settings.evaluation_root))
    file = _file(spec)
    return Project.at(None if file is None else file.parent)


@door
def plan(spec: Spec, assignments: Sequence[str] = (), *, provisional: bool = False) -> Plan:
    """Plan every run that a spec needs. For a search, its begun configurations are the arms.

    Args:
        provisional: plan even if data is missing on this machine; the affected runs get provisional ids.

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
        fix = "pass them to `load`, or change the object"
        raise SpecError("assignments apply only to files", where="assignments", fix=fix)
    assert isinstance(spec, str | Path | Ablation), "searches are handled above"
    return project(spec).plan(spec, assignments, provisional=provisional)


@door
def base_plan(spec: str | Path | Search, assignments: Sequence[str] = ()) -> Plan:
    """Plan the base of a search, as an ablation with one arm: what every configuration starts from.

    Raises:
        SpecError: the spec is not a search, or is not valid.
    """
    request = search_request(spec, assignments)
    search = request.search
    base = {"question": search.question, "experiment": search.experiment, "base": search.base, "arms": {"base": {}}}
    more = {"baseline": "base", "seeds": search.seed_list, "primary": search.objectives[0].metric}
    return request.project.plan(Ablation.model_validate(base | more), provisional=True, name=request.name)


@door
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
    on_look: Callable[[InterimLook], None] | None = None,
    stop: Event | None = None,
    verbose: bool = False,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Outcome:
    """Train and evaluate every missing run once; the result is true if every run is done.

    If seeds are added on demand, look at the claims after each round, and go on until none is open.

    A KeyboardInterrupt stops cleanly (running runs write a checkpoint first) and is raised again.

    Args:
        on: `local` (processes of this machine), `inline` (this process), or the file of a cluster profile. Default:
            `profile` of harness.toml.
        jobs: number of runs to execute at a time on this machine.
        max_gpu_hours: budget for a cluster's jobs.
        detach: return at once. Jobs continue by themselves; on this machine, a background command continues the runs.
        confirm: called if the budget may not be enough; without it, that is an error.
        on_progress: called with a snapshot a few times a second.
        on_look: called after each look at the claims.
        stop: once another thread sets it, running runs write a checkpoint and exit.
        verbose: let `inline` print and handle signals in the calling thread, as the command does.
        arms, seeds: carry out the runs of these alone.

    Raises:
        SpecError: the spec or the profile is not valid, there is no such arm or seed, or the budget is not enough.
        DataError: the data cannot be read.
        DispatchError: some of the runs are in jobs of a cluster, or no process or job can be started.
        StoreError: the store cannot be written, or holds a run with other defaults.
    """
    planned = plan(spec, assignments)
    at = project(planned)
    target = on or at.settings.profile
    remember(planned, at.store)
    part = planned.part(arms, seeds) if arms or seeds else planned
    if detach:
        chosen = [word for arm in arms for word in ("--arm", arm)]
        chosen += ["--seeds", ",".join(map(str, seeds))] if seeds else []
        return _detached(spec, assignments, part, at, target, jobs, max_gpu_hours, confirm, chosen)

    def round_of(some: Plan) -> Outcome:
        return carry_out(
            some,
            at,
            target,
            jobs=jobs,
            max_gpu_hours=max_gpu_hours,
            confirm=confirm,
            on_progress=on_progress,
            stop=stop,
            verbose=verbose,
        )

    if part is not planned or not planned.ablation.on_demand:
        return round_of(part)
    return _until_decided(planned, at, round_of, on_look)


def _until_decided(
    planned: Plan, at: Project, round_of: Callable[[Plan], Outcome], on_look: Callable[[InterimLook], None] | None
) -> Outcome:
    """Carry out rounds of seeds, with a look at the claims after each, until none is open or a round is not done."""
    with at.store.registered(planned.command):  # between rounds, too
        while outcome := round_of(planned):
            from harness.reporting.looks import next_look  # once there is something to look at

            if (look := next_look(planned, at.store)) is None:
                break
            if on_look is not None:
                on_look(look)
            planned = at.plan(planned.ablation, planned.assignments, name=planned.name)
            if look.is_last:
                return replace(outcome, plan=planned)
            remember(planned, at.store)
        return outcome


def _changed_looks(planned: Plan, store: Store) -> list[str]:
    from harness.reporting.looks import changed_looks

    return changed_looks(planned, store)


@door
def smoke(
    spec: Spec,
    assignments: Sequence[str] = (),
    *,
    on: str | None = None,
    jobs: int | None = None,
    on_progress: Callable[[Plan, Progress], None] | None = None,
    stop: Event | None = None,
    verbose: bool = False,
) -> tuple[Outcome, Path | None]:
    """Train every arm for a few steps in a store of its own, without evaluation; no real run is touched.

    Returns the outcome, and the folder with the logs, which is kept if a run failed.

    Args:
        on, jobs, stop, verbose: as for `run`.
        on_progress: called with the plan of the short runs and a snapshot.

    Raises:
        SpecError, DataError, DispatchError, StoreError: as `run`.
    """
    from harness.execute.smoke import smoke as carry_out_smoke

    planned = plan(spec, assignments)
    at = project(planned)
    target = on or at.settings.profile
    return carry_out_smoke(planned, at, target, jobs=jobs, on_progress=on_progress, stop=stop, verbose=verbose)


@door
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
    """Search until the budget is used up, and confirm the winner on fresh seeds. Resumes a search that was stopped.

    Args:
        on, jobs, stop, verbose: as for `run`.
        storage: database for Optuna; by default a journal in the store.
        on_progress, on_confirm, on_note: see `harness.searching.session.SearchRequest.carry_out`.

    Raises:
        SpecError, DataError, DispatchError, StoreError: as `run`, or another process drives the search.
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
        SpecError: the spec is not a search, or is not valid.
    """
    from harness.searching.session import SearchRequest

    if assignments and isinstance(spec, Search):
        fix = "pass them to `load`, or change the object"
        raise SpecError("assignments apply only to files", where="assignments", fix=fix)
    at, file = project(spec), _file(spec)
    loaded = spec if isinstance(spec, Search) else load_search(spec, assignments)
    name = "search" if file is None else file.stem
    return SearchRequest(loaded, name, at, on or at.settings.profile, jobs, storage, str(file or name))


@door
def report(spec: Spec, format: Format = "md", assignments: Sequence[str] = ()) -> str:
    """Report on the finished runs, as text in this format. For a search, report its results so far.

    Raises:
        HarnessError: the spec is not valid, or a record is damaged.
    """
    if (request := _search_request(spec, assignments)) is not None:
        from harness.searching.page import as_html
        from harness.searching.report import render as render_search

        if format in ("latex", "csv", "json"):
            fix = "use md, terminal or html, or call `results`"
            raise SpecError(f"is a search, which has no report as {format}", where=request.where, fix=fix)
        return as_html(request.look()) if format == "html" else render_search(request.look())
    from harness.reporting import render

    return render(_collected(spec, assignments), format)


@door
def publish(
    spec: Spec, folder: str | Path, assignments: Sequence[str] = (), *, weights: bool = False, images: bool = False
) -> Published:
    """Write an ablation with its finished runs, claims, code and report into a folder that others can verify.

    Args:
        folder: must not exist.
        weights: include the final weights of runs.
        images: include galleries of images, and with them the HTML report.

    Raises:
        SpecError: the spec is not valid, or is a search.
        StoreError: the folder exists, no run has finished, a run is damaged, or a file names a path, host or user.
    """
    from harness.execute.publish import publish as write

    if (request := _search_request(spec, assignments)) is not None:
        raise SpecError("is a search", where=request.where, fix="publish an ablation of its winner")
    planned = plan(spec, assignments, provisional=True)
    return write(planned, project(planned), Path(folder), _rendered, weights=weights, images=images)


def _rendered(planned: Plan, store: Store, format: Format) -> str:
    from harness.reporting import collect, render

    return render(collect(planned, store), format)


@door
def verify(spec: Spec, assignments: Sequence[str] = (), *, retrain: int = 0, root: str | None = None) -> Verification:
    """Check the finished runs of a spec and its report: seals, metrics from outcomes, statistics from metrics.

    A spec may also be the id of a run, or its first digits; then there is no report to check. It may be the folder of a
    bundle that `publish` wrote.

    Args:
        retrain: number of runs to train again, in a store of their own, to compare them bit for bit.
        root: the root hash of a bundle, as it was published.

    Raises:
        SpecError: the spec is not valid, or does not go with the options.
        StoreError: there is no such run or bundle.
    """
    from harness.execute import verify as engine
    from harness.execute.verify_bundle import verify_bundle
    from harness.execute.verify_report import verify_report

    found = engine.Verification()
    bundle = Path(spec) if isinstance(spec, str | Path) and Path(spec).is_dir() else None
    run_id = spec if bundle is None and isinstance(spec, str) and not spec.endswith(".toml") else None
    if root is not None and bundle is None:
        raise SpecError("only a published folder has a root hash", where="--root", fix="name that folder")
    if retrain and (bundle is not None or run_id is not None):
        raise SpecError("only runs of a spec can be trained again", where=str(spec), fix="give the spec's file")
    if bundle is not None:
        return verify_bundle(bundle, _rendered, _changed_looks, root)
    if run_id is not None:
        engine.verify_run(find_run(project().store, run_id), found)
        return found
    planned = plan(spec, assignments, provisional=True)
    at = project(planned)
    for run in planned.runs.values():
        if (folder := at.store.run(run.id)).record_file.exists():
            engine.verify_run(folder, found, run.identity)
    if missing := len(planned.runs) - found.runs:
        found.unproven.append(f"{missing} of {len(planned.runs)} runs have not finished")
    if found.runs:
        verify_report(_rendered(planned, at.store, "json"), found)
        found.problems += _changed_looks(planned, at.store)
    engine.retrain(planned, at, retrain, found)
    return found


@door
def results(spec: Spec, assignments: Sequence[str] = ()) -> pd.DataFrame:
    """Results as a table with one row per run and metric: arm, label, seed, run_id, state, metric, value,
    standard_error, samples, protocol_id.

    Values are unrounded, in the metric's own scale. A run without results has one row without a metric.

    Raises:
        HarnessError: the spec is not valid, or a record is damaged.
    """
    import pandas as pd

    from harness.reporting.formats.machine import HEADS, rows

    return pd.DataFrame.from_records(list(rows(_collected(spec, assignments))), columns=list(HEADS))


@door
def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    sets: str | Sequence[str] = (),
    *,
    protocols: Sequence[str] = (),
    spec: str | Path | None = None,
    model: str | None = None,
    processes: int | None = None,
) -> dict[str, tuple[EvaluationResult, ...]]:
    """Evaluate checkpoints on evaluation sets; returns the results, with averages of suites, by checkpoint.

    Args:
        checkpoints: run ids, or weights files with `model`; `NAME=FILE` gives a file a name.
        sets: names or paths of sets, or suites; of a suite, the sets on this machine are evaluated.
        protocols: additional evaluation protocols of prior work: `slip`, `alip`...
        spec: an experiment's file, whose `[evaluation]` says what to measure and how; `sets` and `protocols` are added.
        model: open_clip's model name, for weights files.
        processes: number of processes of this machine that share the work; default: one per GPU.

    Raises:
        SpecError: a weights file has no model name, a protocol is unknown, two checkpoints have the same name, no set
            is named, or `spec` is not valid.
        DataError: an evaluation set is missing or damaged.
        ModelError: the weights do not fit.
        StoreError: there is no such run.
    """
    from harness.execute.evaluate import evaluation_of, present, sources_of, with_averages

    stated = [checkpoints] if isinstance(checkpoints, str | Path) else checkpoints
    at = project()
    named = [sets] if isinstance(sets, str) else sets
    evaluation = present(evaluation_of(named, protocols, None if spec is None else Path(spec)), at)
    sources = sources_of(at, [str(one) for one in stated], model)
    return {name: with_averages(source.measure(evaluation, processes)) for name, source in sources.items()}


@door
def mteb_model(checkpoint: str | Path, model: str | None = None) -> MtebModel:
    """A checkpoint as a model of `mteb` (MIEB): pass it to `mteb.evaluate`.

    Args:
        checkpoint: a run's id, or a weights file with `model`; `NAME=FILE` gives a file a name.
        model: open_clip's model name or a configuration (.json), for weights files.

    Raises:
        SpecError: a weights file has no model name.
        ModelError: the weights do not fit.
        StoreError: there is no such run.
    """
    from harness.execute.evaluate import sources_of

    ((name, source),) = sources_of(project(), [str(checkpoint)], model).items()
    return source.mteb_model(name)


@door
def sync(
    spec: Spec,
    assignments: Sequence[str] = (),
    *,
    pages: Sequence[Path] = (),
    under_report: bool = False,
    again: bool = False,
    limit_s: float = float("inf"),
) -> SyncResult:
    """Import the records of a spec's runs into MLflow. Importing again changes nothing.

    Args:
        pages: files of the report, attached to a separate MLflow run.
        under_report: make the arms children of that MLflow run, as for the trials of a search.
        again: import everything anew, whatever MLflow has already.
        limit_s: import no further run after this many seconds.

    Raises:
        SpecError: tracking is off.
        TrackingError: the server does not answer in time, or refuses the records.
    """
    from harness.tracking import sync as import_records

    searched = _search_request(spec, assignments) is not None
    planned = plan(spec, assignments)
    at = project(planned)
    under = under_report or searched
    return import_records(
        planned, at.store, _tracking(at), pages=pages, under_report=under, again=again, limit_s=limit_s
    )


def ui_command(port: int = 5000) -> list[str]:
    """The command that serves the MLflow UI of the working folder's project.

    Raises:
        SpecError: tracking is off.
        TrackingError: tracking is a server's, or the port is taken.
    """
    from harness.tracking import ui_command as command

    return command(_tracking(project()), port)


def ui_page(port: int = 5000, spec: str | Path | None = None) -> str:
    """The page of that UI to begin with: the arms of the spec in a file, or all experiments."""
    from harness.runs.names import own_name
    from harness.tracking import ui_page as page

    at = project()
    return page(_tracking(at), port, own_name(Path(spec).stem, Path(spec), at.store) if spec else None)


def _tracking(at: Project) -> str:
    if at.settings.tracking is None:
        raise SpecError('tracking is off (tracking_uri = "none")', where="harness.toml", fix="set a URI")
    return at.settings.tracking


def cancel_vanished(spec: Spec, assignments: Sequence[str] = ()) -> Cancelled:
    """Cancel jobs of the spec's ablation whose runs the spec no longer contains."""
    from harness.execute.slurm.jobs import cancel_jobs, look, vanished

    planned = plan(spec, assignments, provisional=True)
    store = project(planned).store
    return cancel_jobs(vanished(planned, look(store)[0]), store)


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
    chosen: Sequence[str],
) -> Outcome:
    """Submit the runs, and start a background command for runs that the queue rejects or that use this machine."""
    outcome = Outcome(planned, Progress(0, len(planned.runs)))
    if is_profile(target) and not planned.ablation.on_demand:  # whose next runs depend on a look at these
        outcome = submit(planned, at, target, max_gpu_hours=max_gpu_hours, confirm=confirm)
        if not outcome.without_jobs:
            return outcome
    if (file := _file(spec)) is None:
        fix = "write the spec to a file, or run it without `detach`"
        raise SpecError("a spec created in Python cannot continue in the background", where="detach", fix=fix)
    arguments = [*background_arguments(file, assignments, target, jobs), *chosen]
    if is_profile(target) and max_gpu_hours is not None:
        arguments += ["--max-gpu-hours", str(max_gpu_hours), "--yes"]
    background = start_in_background("run", arguments, at.store.root / f"{planned.name}.log")
    return replace(outcome, background=background)


def background_arguments(file: Path, assignments: Sequence[str], target: str, jobs: int | None) -> list[str]:
    """The arguments of the background command."""
    sets = [part for one in assignments for part in ("--set", one)]
    return [str(file.resolve()), *sets, "--on", target, *(["--jobs", str(jobs)] if jobs else [])]


def _search_request(spec: Spec, assignments: Sequence[str]) -> SearchRequest | None:
    """The request for a search; None for anything else."""
    if isinstance(spec, Search) or (isinstance(spec, str | Path) and is_search(spec)):
        return search_request(spec, assignments)
    return None


def _file(spec: Spec | None) -> Path | None:
    """The file of a spec, if it has one."""
    if isinstance(spec, str | Path):
        return Path(spec)
    return spec.file if isinstance(spec, Ablation | Search | Plan) else None
