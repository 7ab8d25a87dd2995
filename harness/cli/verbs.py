"""The verbs. Each is a few lines over the library; heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.base.errors import SpecError
from harness.cli.data import Set, Spec, data_app

if TYPE_CHECKING:
    from harness.planning.plan import Plan
    from harness.planning.workspace import Project

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    help="Declared ablations of CLIP-style pre-training: plan, run, compare.",
)

app.add_typer(data_app, name="data")

Specs = Annotated[
    list[Path], typer.Argument(metavar="SPEC...", help="Ablation or experiment files (TOML).", show_default=False)
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its first digits.", show_default=False)]
Format = Literal["md", "html", "latex", "csv", "json"]


def _project(start: Path | None = None) -> Project:
    from harness.planning.workspace import Project

    return Project.at(start)


def _planned(spec: Path, set_: list[str], project: Project, *, provisional: bool) -> tuple[bool, Plan]:
    """Whether it is a search, and the plan of a spec: of a search, what it has begun."""
    from harness.config.load import is_search

    if is_search(spec):
        from harness.cli import search as searching

        return True, searching.begun(spec, set_, project)
    return False, project.plan(spec, set_, provisional=provisional)


@app.command()
def check(spec: Spec, set_: Set) -> None:
    """Check a spec: every arm, its data, its evaluation sets. Trains nothing."""
    from harness.planning.preflight import problems

    project = _project(spec.parent)
    plan = project.plan(spec, set_, provisional=True)
    found = problems(plan, project.settings)
    for problem in found:
        print(f"missing: {problem}")
    state = "is valid, but not all of it is on this machine" if found else "is valid"
    print(f"{spec} {state}: {len(plan.arms)} arms, {len(plan.cells)} runs.")


@app.command()
def plan(
    specs: Specs,
    set_: Set,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON: one plan, or a list of several.")] = False,
) -> None:
    """Show the runs that specs need: what is done, shared, missing, and what it will cost."""
    from harness.cli import output as show

    shown = []
    for spec in specs:
        project = _project(spec.parent)
        planned = project.plan(spec, set_, provisional=True)
        if as_json:
            shown.append(show.plan_json(planned, project.store))
        else:
            show.plan(planned, project.store)
    if as_json:
        print(json.dumps(shown[0] if len(shown) == 1 else shown, indent=1 if sys.stdout.isatty() else None))


@app.command()
def run(
    spec: Spec,
    set_: Set,
    on: Annotated[
        str | None, typer.Option("--on", metavar="PROFILE", help="`local` processes, `inline`, or slurm/NAME.toml.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Runs at a time on this machine.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; on a cluster, submit.")] = False,
    max_gpu_hours: Annotated[
        float | None, typer.Option("--max-gpu-hours", min=0, help="Budget of the sweep on a cluster.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Submit as much as fits into the budget, without asking.")] = False,
) -> None:
    """Train and evaluate every missing run once, then print the table. Ctrl-C stops cleanly; run again to go on."""
    from harness.cli import cluster
    from harness.cli import run as running

    project = _project(spec.parent)
    planned = project.plan(spec, set_)
    target = on or project.settings.profile
    if cluster.is_profile(target):
        sweep = cluster.sweep(planned, project, target, max_gpu_hours, yes)
        if detach:
            if not cluster.submit(sweep, spec):
                budget = [] if max_gpu_hours is None else ["--max-gpu-hours", str(max_gpu_hours), "--yes"]
                running.detach(spec, set_, target, jobs, project, budget)
            return
        finished = cluster.carry_out(planned, project, sweep)
    elif detach:
        running.detach(spec, set_, on, jobs, project)
        return
    else:
        cluster.refuse_what_jobs_have(planned.runs, planned.name, project.store)
        finished = running.carry_out(planned, project, running.workers(target, jobs, project.settings))
    running.wrap_up(planned, project)
    raise typer.Exit(0 if finished else 1)


@app.command()
def search(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A search file (TOML).", show_default=False)],
    set_: Set,
    on: Annotated[
        str | None, typer.Option("--on", metavar="PROFILE", help="`local` processes, `inline`, or slurm/NAME.toml.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time, on this machine or in jobs of a cluster.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Database for Optuna; default: a journal.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the winner as an experiment file.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background.")] = False,
) -> None:
    """Search fields of an experiment with Optuna over the same runs that ablations use. Run again to go on."""
    from harness.cli import search as searching

    project = _project(spec.parent)
    asked = searching.Asked(spec, set_, project, on or project.settings.profile, jobs, storage, export)
    if detach:
        searching.detach(asked)
    elif not searching.search(asked):
        raise typer.Exit(1)


@app.command()
def status(
    spec: Spec,
    set_: Set,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until everything is done.")] = False,
) -> None:
    """Show where every run of a spec stands; of a search, every run that it has begun."""
    from harness.cli import status as standing
    from harness.config.load import is_search

    project = _project(spec.parent)
    if watch and is_search(spec):
        from harness.cli import search as searching

        driven = partial(searching.is_alive, spec, project)
        standing.watch_growing(partial(searching.begun, spec, set_, project), project.store, driven)
        return
    _, planned = _planned(spec, set_, project, provisional=True)
    if watch:
        standing.watch(planned, project.store)
    else:
        standing.status(planned, project.store)


@app.command()
def cancel(
    spec: Annotated[str, typer.Argument(metavar="SPEC|RUN", help="A spec, or a run's id.", show_default=False)],
    set_: Set,
    vanished: Annotated[bool, typer.Option("--vanished", help="Only jobs that the spec no longer asks for.")] = False,
) -> None:
    """Ask the running runs of a spec, or one run, to write a checkpoint and stop; jobs that wait are cancelled."""
    from harness.cli import cluster
    from harness.cli import run as running
    from harness.config.load import is_search

    if not spec.endswith(".toml"):
        store = _project().store
        running.cancel_run(store.find(spec), cluster.cancel([store.find(spec).id], store))
        return
    project = _project(Path(spec).parent)
    if is_search(spec):
        from harness.cli import search as searching

        searching.cancel(Path(spec), set_, project)
        return
    planned = project.plan(Path(spec), set_, provisional=True)
    if vanished:
        cancelled = cluster.cancel(cluster.vanished(planned, project.store), project.store)
        print("" if cancelled else "no job has a run that the spec does not ask for", end="" if cancelled else "\n")
        return
    running.cancel(planned, project.store, cluster.cancel(planned.runs, project.store))


@app.command()
def logs(
    run: RunId, follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing what is added.")] = False
) -> None:
    """Print what a run's workers wrote."""
    from harness.cli import output as show

    show.log(_project().store.find(run), follow=follow)


@app.command()
def report(
    spec: Spec,
    set_: Set,
    format_: Annotated[Format | None, typer.Option("--format", help="Default: a table in the terminal.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write a file there instead of printing.")
    ] = None,
) -> None:
    """Answer the ablation's question with numbers, intervals and plots, from the records that are there."""
    from harness.config.load import is_search
    from harness.reporting import collect, refuse_nothing, render, write_report

    project = _project(spec.parent)
    if is_search(spec):
        from harness.cli import search as searching

        page = out or (project.store.reports if format_ == "html" else None)
        searching.report(spec, set_, project, page)
        return
    results = collect(project.plan(spec, set_, provisional=True), project.store)
    refuse_nothing(results)
    if format_ == "html" or out is not None:
        print(write_report(results, format_ or "html", out or project.store.reports))
    else:
        print(render(results, format_ or "terminal"))


@app.command()
def preview(
    spec: Spec,
    set_: Set,
    arm: Annotated[str | None, typer.Option(help="Default: the first arm that mines.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="How many batches.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the page.")] = None,
) -> None:
    """Show what mining calls positive: a gallery of images, their captions, and the captions mined for them."""
    from harness.cli.preview import preview as write

    project = _project(spec.parent)
    print(write(project.plan(spec, set_), project, arm, batches, out or project.store.reports))


@app.command()
def profile(
    spec: Spec,
    set_: Set,
    arm: Annotated[str | None, typer.Option(help="Default: the baseline.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="How many steps are measured.")] = 10,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace of the operations.")] = None,
) -> None:
    """Take a few steps of an arm and say where the time goes: data, towers, mining, loss, optimiser."""
    from harness.cli.profile import profile as measured

    project = _project(spec.parent)
    print(measured(project.plan(spec, set_), project, arm, steps, trace))


@app.command()
def compare(runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of finished runs.")]) -> None:
    """Show side by side what differs between runs, and their metrics."""
    from harness.reporting import compare as compared

    store = _project().store
    folders = [store.find(run) for run in runs]
    print(compared([(folder.id, folder.record(), folder.resolved()) for folder in folders]))


@app.command("eval")
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...", help="Run ids or weights files; NAME=FILE names one.", show_default=False
        ),
    ],
    suite: Annotated[list[str], typer.Option("--suite", metavar="NAME", help="A suite, or a set: name or path.")],
    protocol: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Also measure as prior work did: slip, alip...",
            default_factory=list,
            show_default=False,
        ),
    ],
    model: Annotated[str | None, typer.Option(help="open_clip model of weights files.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write JSON there too.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that measure together. Default: one for each GPU.")
    ] = None,
) -> None:
    """Measure checkpoints on evaluation sets and print the metrics with their protocol."""
    from harness.cli.evaluate import asked, measure

    measure(_project(), checkpoints, asked(suite, protocol), model, out, processes)


@app.command()
def sync(spec: Spec, set_: Set) -> None:
    """Import the records of a spec's runs into MLflow; importing twice changes nothing."""
    from harness.tracking import sync as import_records

    project = _project(spec.parent)
    if project.settings.tracking is None:
        raise SpecError('tracking is off (tracking_uri = "none")', where="harness.toml", fix="set a URI")
    searched, planned = _planned(spec, set_, project, provisional=False)
    result = import_records(planned, project.store, project.settings.tracking, under_report=searched)
    print(f"{result.imported} runs imported, {result.unchanged} unchanged, into {project.settings.tracking}")


@app.command()
def references(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="clip_benchmark's JSON or CSV, a paper's table as TOML.", show_default=False
        ),
    ],
    arm: Annotated[
        list[str],
        typer.Option(
            "--arm",
            metavar="[ROW=]ARM",
            help="The arm that numbers stand beside.",
            default_factory=list,
            show_default=False,
        ),
    ],
) -> None:
    """Print others' results as [[references]] of an ablation, each with how it was measured as far as known."""
    from harness.reporting.references import arm_names, as_toml, assigned, read_external

    found = [one for file in files for one in read_external(file)]
    print(as_toml(assigned(found, arm_names(arm))), end="")


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Open the MLflow UI on the project's tracking store."""
    import os

    from harness.tracking import ui_command

    settings = _project().settings
    if settings.tracking is None:
        raise SpecError('tracking is off (tracking_uri = "none")', where="harness.toml", fix="set a URI")
    command = ui_command(settings.tracking, port)
    sys.stdout.flush()
    os.execv(command[0], command)


@app.command()
def doctor() -> None:
    """Look for what is known to go wrong: versions, GPU, SLURM, stores, data; each with a remedy."""
    from harness.doctor import diagnose

    findings = diagnose(_project().settings)
    for finding in findings:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{finding.level:8}{finding.subject}: {finding.message}{remedy}")
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


@app.command()
def schema(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path("schemas"),
) -> None:
    """Write the JSON Schemas of experiments, ablations and harness.toml; editors complete and check with them."""
    from harness.base.files import write_json
    from harness.docs.schema import schemas

    for name, content in schemas().items():
        write_json(out / f"{name}.schema.json", content)
        print(out / f"{name}.schema.json")
