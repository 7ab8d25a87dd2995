"""The verbs of the command. Each is a few lines over the library; heavy imports are inside the verb that needs them."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.base.errors import HarnessError, SpecError
from harness.cli.data import Set, Spec, data_app, say_store
from harness.cli.parts import part_app
from harness.cli.project import project_app
from harness.cli.store import store_app

if TYPE_CHECKING:
    from harness.planning.estimate import Operations
    from harness.planning.plan import Plan
    from harness.planning.preflight import Obstacle
    from harness.planning.workspace import Project
    from harness.runs.folder import RunFolder
    from harness.runs.store import Store

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
)

app.add_typer(project_app)
app.add_typer(store_app)
app.add_typer(data_app, name="data")
app.add_typer(part_app, name="part")


def _version(wanted: bool) -> None:
    if wanted:
        from harness.base.version import __version__

        print(f"harness {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declared ablations of CLIP-style pre-training: plan, run, compare."""


Specs = Annotated[
    list[Path], typer.Argument(metavar="SPEC...", help="Ablation or experiment files (TOML).", show_default=False)
]
RunId = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, its first digits, or ARM/SEED.", show_default=False)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, as schemas/output.schema.json describes it.", show_default=False)
]
Format = Literal["md", "html", "latex", "csv", "json"]


def _run(stated: str) -> RunFolder:
    from harness.runs.noted import find_run

    return find_run(_project().store, stated)


def _project(start: Path | None = None) -> Project:
    from harness.planning.workspace import Project

    return Project.at(start)


def _looked_at(spec: Path, assignments: list[str]) -> tuple[Plan, bool]:
    """The plan of a spec, or of the base of a search, whose data may be missing; and whether it is a search."""
    from harness import api
    from harness.config.load import is_search

    if is_search(spec):
        return api.base_plan(spec, assignments), True
    return api.plan(spec, assignments, provisional=True), False


def _timed(planned: Plan, store: Store) -> dict[str, float]:
    """Seconds per step of every shape that no finished run has; those that cannot be timed are named on stderr."""
    from harness import api
    from harness.node.profile import step_seconds
    from harness.planning.estimate import unknown

    found = {}
    for shape, run in unknown(planned, store).items():
        try:
            found[shape] = step_seconds(planned, api.project(planned), run)
        except HarnessError as error:
            print(f"not measured: {error}", file=sys.stderr)
    return found


def _operations(
    planned: Plan, store: Store, gpu: str, utilisation: float, tokens: int, samples: int | None
) -> Operations:
    """GPU-hours of the plan's missing runs from their operations. Their towers are built without memory."""
    from harness.node.operations import sample_flops
    from harness.planning.estimate import operations

    counted = sample_flops(planned.runs.values(), tokens)
    return operations(planned, store.states(planned.runs), counted, gpu, utilisation, tokens, samples)


@app.command()
def check(
    specs: Specs,
    set_: Set,
    quick: Annotated[
        bool, typer.Option("--quick", help="Import nothing heavy: build no model, read no weights, count no captions.")
    ] = False,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Data, sets, weights and GPUs may be on another machine: exit status 0.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check specs without training: exit status 0 if every run can start on this machine."""
    from harness.cli.output import as_json as print_json
    from harness.config.origin import with_line

    status, shown = 0, []
    for spec in specs:
        try:
            found = _check(spec, set_, quick=quick, say_it=not as_json)
            shown.append(found)
            status = max(status, int(bool(found["wrong"] or (found["missing"] and not elsewhere))))
        except HarnessError as error:
            for one in (error, *error.others):
                print(f"harness: {with_line(one)}", file=sys.stderr)
            status = 2
    if as_json and shown:
        print_json(shown[0] if len(specs) == 1 else shown)
    raise typer.Exit(status)


def _check(spec: Path, assignments: list[str], *, quick: bool, say_it: bool) -> dict[str, Any]:
    """What `harness.docs.outputs.CheckOutput` describes; printed as text if `say_it`.

    Raises:
        SpecError: there is a mistake in the spec.
    """
    from harness.cli.output import plural, say, say_census
    from harness.planning.isolation import confounded
    from harness.planning.preflight import notes

    plan, searched = _looked_at(spec, assignments)
    found, seen = _obstacles(plan, quick), list(notes(plan, plan.settings))
    wrong = [one.sentence(plan.file) for one in found if not one.is_elsewhere]
    missing = [one.sentence(plan.file) for one in found if one.is_elsewhere]
    doubts = [str(warning) for warning in confounded(plan.ablation, plan.experiments)]
    census = [sentence for report in plan.data.values() for sentence in report.census()]
    checked = {
        "spec": str(spec),
        "kind": "search" if searched else "ablation",
        "arms": len(plan.arms),
        "runs": len(plan.cells),
        "wrong": wrong,
        "missing": missing,
        "notes": [*census, *seen],
        "confounded": doubts,
    }
    if not say_it:
        return checked
    for problem in found:
        say(f"{'missing' if problem.is_elsewhere else 'wrong'}: {problem.sentence(plan.file)}")
    say_census(plan)
    for note in seen:
        say(note)
    for warning in doubts:
        say(f"confounded: {warning}")
    state = "is valid, but not all of it is on this machine" if missing else "is valid"
    of = "a search; its base" if searched else plural(len(plan.arms), "arm")
    say(f"{spec} {'cannot run' if wrong else state}: {of}, {plural(len(plan.cells), 'run')}.")
    return checked


def _obstacles(plan: Plan, quick: bool) -> list[Obstacle]:
    """What would stop runs; what is known without building a model is not said twice."""
    from harness.planning import preflight

    found = preflight.obstacles(plan, plan.settings)
    if quick:
        return found
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a check downloads nothing
    from harness.node import can_start

    known = {(one.key, one.error.what) for one in found}
    return found + [one for one in can_start.obstacles(plan) if (one.key, one.error.what) not in known]


@app.command()
def plan(
    specs: Specs,
    set_: Set,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON (schemas/output.schema.json): one plan, or a list of several.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time ten steps of every shape that no finished run has.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="Estimate hours of this GPU (H100, A100, ...) from operations."),
    ] = None,
    utilisation: Annotated[
        float, typer.Option("--utilisation", min=0.01, max=1, help="Share of the GPU's peak that training reaches.")
    ] = 0.4,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Length of captions, for --gpu.")] = 32,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Size of data sets that are not on this machine.")
    ] = None,
) -> None:
    """Show the runs that specs need: which are done, shared or missing, and what they will cost."""
    from harness import api
    from harness.cli import output

    shown = []
    for spec in specs:
        planned, searched = _looked_at(spec, set_)
        store = api.project(planned).store
        if not searched:
            output.note_claims(planned, store)
        timed = _timed(planned, store) if measure else None
        counted = _operations(planned, store, gpu, utilisation, tokens, samples) if gpu else None
        if as_json:
            shown.append(output.plan_json(planned, store, timed, counted))
        elif searched:
            output.search_plan(api.search_request(spec, set_).search, planned, store, timed, counted)
        else:
            output.plan(planned, store, timed, counted)
        if not as_json:
            output.say_census(planned)
    if as_json:
        output.as_json(shown[0] if len(shown) == 1 else shown)


@app.command()
def run(
    spec: Spec,
    set_: Set,
    on: Annotated[
        str | None, typer.Option("--on", metavar="PROFILE", help="`local` processes, `inline`, or slurm/NAME.toml.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Runs at a time on this machine.")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of each run on this machine.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Continue in the background; on a cluster, submit and exit.")
    ] = False,
    max_gpu_hours: Annotated[
        float | None, typer.Option("--max-gpu-hours", min=0, help="Budget for the jobs of a cluster.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Submit as much as fits into the budget, without asking.")] = False,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", metavar="NAME", help="Only this arm; repeat for several.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1", help="Only these seeds.", show_default=False)] = "",
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Only try every arm for a few steps, in a scratch store.")
    ] = False,
) -> None:
    """Train and evaluate every missing run once, then print the table. Ctrl-C stops cleanly; run again to resume."""
    from harness import api
    from harness.cli import run as shown
    from harness.cli.output import say_census
    from harness.execute.run import is_profile

    if threads:
        os.environ["HARNESS_THREADS"] = str(threads)  # a setting, which a background command takes over
    planned = api.plan(spec, set_)
    say_census(planned)
    target = on or planned.settings.profile
    if smoke:
        raise typer.Exit(0 if shown.smoke(planned, target, jobs) else 1)
    chosen = shown.seeds_of(seeds)
    run = partial(
        api.run, planned, set_, on=target, jobs=jobs, max_gpu_hours=max_gpu_hours, arms=arm or (), seeds=chosen
    )
    confirm = (lambda _question: True) if yes else shown.confirmed
    if detach:
        outcome = run(detach=True, confirm=confirm)
        shown.say_detached(outcome, spec)
        raise typer.Exit(0 if outcome.is_in_hand else 1)
    stopping = shown.LEAVING if is_profile(target) else shown.STOPPING
    with shown.clean_stop(stopping) as stop, shown.display(planned) as show:
        outcome = run(confirm=confirm, on_progress=show, on_look=shown.say_look, stop=stop, verbose=True)
    planned = outcome.plan if not (arm or chosen) else planned
    shown.say_end(outcome)
    shown.wrap_up(planned, api.project(planned), ending=bool(outcome))
    raise typer.Exit(0 if outcome else 1)


@app.command()
def search(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A search file (TOML).", show_default=False, callback=say_store)
    ],
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
    detach: Annotated[bool, typer.Option("--detach", help="Continue in the background.")] = False,
) -> None:
    """Search fields of an experiment with Optuna, with the same runs that ablations use. Run again to resume."""
    from harness import api
    from harness.cli import search as shown

    request = api.search_request(spec, set_, on=on, jobs=jobs, storage=storage)
    if detach:
        more = ["--storage", storage] if storage else []
        more += ["--export", str(export.resolve())] if export else []
        shown.detach(request, spec, [*api.background_arguments(spec, set_, request.target, jobs), *more])
    elif not shown.search(request, spec, export):
        raise typer.Exit(1)


@app.command()
def status(
    spec: Spec,
    set_: Set,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until nothing is running or pending.")] = False,
    as_json: Json = False,
) -> None:
    """Show the state of every run of a spec; for a search, of every run that it has begun. Exit status 1: damage."""
    from harness import api
    from harness.cli import status as shown
    from harness.config.load import is_search

    project = api.project(spec)
    if watch and is_search(spec):
        request = api.search_request(spec, set_)
        shown.watch(request.begun, project.store, lambda: bool(request.drivers()))
        return
    planned = api.plan(spec, set_, provisional=True)
    if as_json:
        from harness.cli.output import as_json as print_json

        data, found = shown.status_json(planned, project.store)
        print_json(data)
        raise typer.Exit(1 if any(one.is_damaged for one in found) else 0)
    if watch:
        # with seeds on demand, a running command may add seeds
        again = partial(api.plan, spec, set_, provisional=True) if planned.ablation.on_demand else lambda: planned
        shown.watch(again, project.store, lambda: bool(project.store.running_commands(planned.command)))
    else:
        raise typer.Exit(1 if any(one.is_damaged for one in shown.status(planned, project.store)) else 0)


@app.command()
def cancel(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC|RUN", help="A spec, or a run: its id, or ARM/SEED.", show_default=False)
    ],
    set_: Set,
    vanished: Annotated[
        bool, typer.Option("--vanished", help="Only cancel jobs of runs that the spec no longer contains.")
    ] = False,
) -> None:
    """Stop a spec's running runs, or one run, after a checkpoint, and cancel pending jobs."""
    from harness import api
    from harness.cli import run as shown
    from harness.config.load import is_search
    from harness.execute.cancel import cancel as ask
    from harness.execute.cancel import cancel_run

    if not spec.endswith(".toml"):
        store = _project().store
        asked = cancel_run(_run(spec), store)
    elif is_search(spec):
        from harness.cli.search import cancel as cancel_search

        cancel_search(api.search_request(Path(spec), set_))
        return
    elif vanished:
        cancelled = api.cancel_vanished(spec, set_)
        shown.say_jobs_cancelled(cancelled)
        if not cancelled.jobs and not cancelled.pending:
            print("no job has a run that the spec does not contain")
        raise typer.Exit(1 if cancelled.pending else 0)
    else:
        planned = api.plan(spec, set_, provisional=True)
        asked = ask(planned, api.project(planned).store)
    shown.say_cancelled(asked)
    raise typer.Exit(1 if asked.jobs.pending else 0)


@app.command()
def logs(
    run: RunId, follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines.")] = False
) -> None:
    """Print the log of a run's workers."""
    from harness.cli import output

    output.log(_run(run), follow=follow)


@app.command("import")
def import_(
    _source: Annotated[Literal["open_clip"], typer.Argument(metavar="open_clip", show_default=False)],
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="-- FLAGS | params.txt", help="Its flags or params.txt.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file.")] = Path("open_clip.toml"),
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Processes, which multiply --batch-size.", show_default=False)
    ] = None,
) -> None:
    """Write the experiment of an open_clip_train command line or params.txt; list what has no counterpart."""
    from harness.planning.from_open_clip import write_experiment

    for sentence in write_experiment(arguments, out, gpus):
        print(sentence)
    print(f"{out}; `harness check {out}` looks for its data")


@app.command()
def export(
    run: RunId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    to: Annotated[
        Literal["open_clip", "hf", "safetensors"], typer.Option("--to", help="`hf`: CLIP's ViTs for transformers.")
    ] = "open_clip",
) -> None:
    """Write a finished run's model with its learned temperature, so that open_clip or transformers loads it."""
    from harness.node.export import export as write

    write(_run(run), folder, to)
    print(folder)


@app.command()
def report(
    spec: Spec,
    set_: Set,
    format_: Annotated[Format | None, typer.Option("--format", help="Default: a table in the terminal.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write a file there instead of printing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Answer the ablation's question with numbers, intervals and plots, from the finished runs' records.

    Exit status 1: the report is without runs whose folders are damaged.
    """
    from harness import api
    from harness.config.load import is_search
    from harness.reporting import collect, refuse_nothing, render, write_report

    format_ = "json" if as_json else format_
    project = api.project(spec)
    if is_search(spec):
        from harness.cli.search import report as report_search

        if format_ in ("json", "csv", "latex"):
            fix = "leave --format out, or use md or html"
            raise SpecError(f"is a search, which has no report as {format_}", where=str(spec), fix=fix)

        page = out or (project.store.reports if format_ == "html" else None)
        report_search(api.search_request(spec, set_), page)
        return
    results = collect(api.plan(spec, set_, provisional=True), project.store)
    refuse_nothing(results)
    if format_ == "html" or out is not None:
        print(write_report(results, format_ or "html", out or project.store))
    else:
        print(render(results, format_ or "terminal"))
    for one in (damaged := results.damaged):
        print(f"harness: {one.message}", file=sys.stderr)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def preview(
    spec: Spec,
    set_: Set,
    arm: Annotated[str | None, typer.Option(help="Default: the first arm that mines.")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Number of batches.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the page.")] = None,
) -> None:
    """Show the positives that mining finds: a gallery of images, their captions, and the captions mined for them."""
    from harness import api
    from harness.node.preview_page import preview as write

    planned = api.plan(spec, set_)
    project = api.project(planned)
    print(write(planned, project, arm, batches, out or project.store.reports))


@app.command()
def profile(
    spec: Spec,
    set_: Set,
    arm: Annotated[str | None, typer.Option(help="Default: the baseline.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps to measure.")] = 10,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome trace of the operations.")] = None,
) -> None:
    """Train an arm for a few steps and show where the time goes: data, towers, mining, loss, optimiser."""
    from harness import api
    from harness.node.profile import profile as measured

    planned = api.plan(spec, set_)
    print(measured(planned, api.project(planned), arm, steps, trace))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs: ids, or ARM/SEED.")],
) -> None:
    """Compare runs side by side: their differences and their metrics."""
    from harness.reporting import compare as compared

    folders = [_run(run) for run in runs]
    print(compared([(folder.id, folder.record(), folder.resolved()) for folder in folders]))


@app.command()
def verify(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|RUN|DIR", help="A spec, a run (id or ARM/SEED), or a published folder.", show_default=False
        ),
    ],
    set_: Set,
    retrain: Annotated[
        int, typer.Option(min=0, metavar="N", help="Train N runs again and compare them bit for bit.")
    ] = 0,
    root: Annotated[str | None, typer.Option(metavar="HASH", help="The root hash of a published folder.")] = None,
) -> None:
    """Check finished runs and their report again, from seals and single outcomes. Exit status 1: something is wrong."""
    from harness.cli.verify import verify as checked

    raise typer.Exit(0 if checked(spec, set_, retrain, root) else 1)


@app.command()
def publish(
    spec: Spec,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    set_: Set,
    weights: Annotated[bool, typer.Option("--weights", help="Include the final weights.")] = False,
    images: Annotated[bool, typer.Option("--images", help="Include galleries and the HTML report.")] = False,
) -> None:
    """Write specs, claims, code, records, outcomes and report into a folder that others check with `harness verify`."""
    from harness.cli.verify import publish as write

    write(spec, folder, set_, weights=weights, images=images)


@app.command("eval")
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Runs, weights files or open_clip MODEL:TAG; NAME=... names one.",
            show_default=False,
        ),
    ],
    suite: Annotated[
        list[str],
        typer.Option(
            "--suite",
            metavar="NAME",
            help="A suite, or a set: name or path.",
            default_factory=list,
            show_default=False,
        ),
    ],
    protocol: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Also evaluate with a protocol of prior work: slip, alip...",
            default_factory=list,
            show_default=False,
        ),
    ],
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="FILE", help="An experiment's file: what to measure and how, in [evaluation]."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="open_clip model name, for weights files.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the results as JSON.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes that share the work. Default: one per GPU.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate checkpoints on evaluation sets and print the metrics with their protocol."""
    from harness.cli.evaluate import measure

    measure(_project(), checkpoints, suite, protocol, model, out, processes, spec=spec, as_json=as_json)


@app.command()
def sync(
    spec: Spec,
    set_: Set,
    again: Annotated[
        bool, typer.Option("--again", help="Import everything again, even what MLflow already has.")
    ] = False,
) -> None:
    """Import the records of a spec's runs into MLflow. Importing again changes nothing. Exit status 1: damage."""
    from harness import api

    result = api.sync(spec, set_, again=again)
    uri = api.project(spec).settings.tracking
    print(f"{result.imported} runs imported, {result.unchanged} unchanged, into {uri}")
    for reason in result.skipped:
        print(f"harness: not imported: {reason}", file=sys.stderr)
    raise typer.Exit(1 if result.skipped else 0)


@app.command()
def references(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="clip_benchmark's JSON or CSV, open_clip_train's results.jsonl, a paper's table (TOML).",
            show_default=False,
        ),
    ],
    arm: Annotated[
        list[str],
        typer.Option(
            "--arm",
            metavar="[ROW=]ARM",
            help="The arm to which the numbers are compared.",
            default_factory=list,
            show_default=False,
        ),
    ],
) -> None:
    """Print published results as [[references]] of an ablation, with their evaluation protocol as far as known."""
    from harness.reporting.references import arm_names, as_toml, assigned, read_external

    found = [one for file in files for one in read_external(file)]
    print(as_toml(assigned(found, arm_names(arm))), end="")


@app.command()
def robustness(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Numbers of models, as `harness eval --out` writes them.", show_default=False
        ),
    ],
    baseline: Annotated[
        list[Path],
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="Numbers of the models that the fit is made of: the same, clip_benchmark's, or a table (TOML).",
            show_default=False,
        ),
    ],
    against: Annotated[
        list[str],
        typer.Option(
            "--against",
            metavar="SET=SET",
            help="The set in distribution of a shifted set, such as imagenet-a=imagenet1k_a; imagenet1k for others.",
            default_factory=list,
            show_default=False,
        ),
    ],
) -> None:
    """Print effective robustness: accuracy on shifted sets beyond what a fit to a baseline's models predicts."""
    from harness.cli.evaluate import print_robustness

    print_robustness(files, baseline, against)


@app.command()
def ui(
    spec: Annotated[
        Path | None, typer.Argument(metavar="SPEC", help="Open the page of its arms.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
) -> None:
    """Serve the MLflow UI of the project's tracking store, and print the page to open."""
    from harness import api

    command = api.ui_command(port)
    print(f"open {api.ui_page(port, spec)}")
    sys.stdout.flush()
    os.execv(command[0], command)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look for known problems with versions, GPU, SLURM, stores and data, and show a remedy for each."""
    from harness.doctor import diagnose

    findings = diagnose(_project().settings)
    if as_json:
        from harness.cli.output import as_json as print_json

        print_json({"findings": [vars(finding) for finding in findings]})
    for finding in findings if not as_json else ():
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        print(f"{finding.level:8}{finding.subject}: {finding.message}{remedy}")
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


@app.command()
def schema(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")] = Path("schemas"),
) -> None:
    """Write JSON Schemas of the spec files, for editors, and of the output of --json."""
    from harness.base.files import write_json
    from harness.docs.outputs import output_schema
    from harness.docs.schema import schemas

    for name, content in {**schemas(), "output": output_schema()}.items():
        write_json(out / f"{name}.schema.json", content)
        print(out / f"{name}.schema.json")
