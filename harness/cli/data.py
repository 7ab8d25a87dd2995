"""`harness data`: fetch, make, check, describe, caption and analyse a spec's data, and compute teacher features."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.base.errors import SpecError

if TYPE_CHECKING:
    from harness.config.data import FileData
    from harness.config.experiment import Experiment
    from harness.features.compute import Estimate
    from harness.planning.workspace import Project

data_app = typer.Typer(no_args_is_help=True, help="Prepare data: fetch, check, caption, teacher features, analysis.")


def say_store(context: typer.Context, spec: Path) -> Path:
    """Say on stderr where results go, if the project has no harness.toml and that is not known yet; returns `spec`."""
    from harness.runs.settings import store_note

    if not context.resilient_parsing and spec.is_file() and (note := store_note(spec.parent)):
        print(f"note: {note}", file=sys.stderr)
    return spec


Spec = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC", help="An ablation or experiment file (TOML).", show_default=False, callback=say_store
    ),
]
Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the base experiment, or of the ablation itself (seeds=5).",
        default_factory=list,
        show_default=False,
    ),
]
Shard = Annotated[str, typer.Option("--shard", metavar="I/N", help="Process only part I of N, counted from 0.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="PROFILE", help="Run as a job array on the cluster of this profile (slurm/NAME.toml)."
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="With --on: number of jobs, one shard each.")]
Device = Annotated[str | None, typer.Option(help="Default: a GPU if there is one.")]


@data_app.command()
def fetch(spec: Spec, set_: Set) -> None:
    """Copy what the spec names by URL to this machine. Run again to resume."""
    from harness.data.sources.files import caption_files
    from harness.data.sources.remote import fetch as copy
    from harness.data.sources.remote import is_url

    project, data = _files(spec, set_)
    patterns = [data.location]
    for source in caption_files(data).values():
        patterns += [source.path, *([source.rows] if source.rows else [])]
    urls = [pattern for pattern in dict.fromkeys(patterns) if is_url(pattern)]
    for url in urls:
        copy(url, project.store.data, print)
    if not urls:
        print(f"{spec}: all of its data is already on this machine")


@data_app.command()
def manifest(
    spec: Spec,
    set_: Set,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there as JSON.")] = None,
) -> None:
    """Describe the data: files, sizes, usable samples, reasons for rejection, caption sources, digests."""
    import json

    from harness.base.files import write_json
    from harness.data.quality.manifest import manifest as describe

    project, data = _files(spec, set_)
    described = describe(data, project.store.data)
    if out is None:
        print(json.dumps(described, indent=1))
    else:
        write_json(out, described)
        print(f"{out}: {described['samples']:,} samples in {len(described['files']):,} files")


@data_app.command()
def check(
    spec: Spec,
    set_: Set,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: store/reports.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
) -> None:
    """Read and decode all data, count bad samples by reason, and write them to a quarantine list."""
    from harness.base.files import write_json
    from harness.base.machine import cores
    from harness.cli.findings import show
    from harness.data.quality.check import check_data, report
    from harness.data.sources.quarantine import write_quarantine

    project, data = _files(spec, set_)
    found = check_data(data, project.store.data, workers or cores(), lambda text: print(text, file=sys.stderr))
    folder = out or project.store.reports
    summary = report(found)
    write_json(folder / f"{spec.stem}-data-check.json", summary)
    listed = folder / f"{spec.stem}-quarantine.jsonl"
    write_quarantine(listed, found.quarantined)
    show(summary, listed, len(found.quarantined))


@data_app.command()
def features(
    spec: Spec,
    set_: Set,
    shard: Shard = "0/1",
    device: Device = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode images; 0: one for each core.")] = 0,
    on: On = None,
    jobs: Jobs = 8,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only print an estimate.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check existing features against their digests.")
    ] = False,
) -> None:
    """Compute the teacher features that a spec's runs read. Resumable, in shards, shared by all runs."""
    from harness.base.machine import cores
    from harness.features.resumable_array import damage
    from harness.node import feature_sets as features_of

    project = _project(spec)
    if on is not None:
        _submit(on, project, "features", spec, set_, [], jobs)
        return
    for one in features_of.feature_sets(project.plan(spec, set_), project):
        wanted = one.wanted
        if verify:
            for file, rows in wanted.arrays.items():
                print(
                    f"{file}: {'intact' if damage(file, rows) == [] else 'damaged; it is computed again when needed'}"
                )
            continue
        for sentence in wanted.reopen_damaged():
            print(sentence, file=sys.stderr)
        if wanted.is_done:
            print(f"{wanted.folder}: done")
            continue
        extraction = one.extraction(features_of.chosen_device(device), workers or cores())
        part = part_of(shard)
        print(said_of(extraction.estimate(), wanted.folder, part[1]))
        if not estimate:
            done = extraction.compute(part, lambda text: print(text, file=sys.stderr))
            print(f"{wanted.folder}: {'done' if done else f'shard {shard} is done, others are not'}")


@data_app.command()
def caption(
    spec: Spec,
    captioner: Annotated[
        Path, typer.Argument(metavar="CAPTIONER", help="A TOML file: model, count, method...", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the new caption source.")],
    set_: Set,
    shard: Shard = "0/1",
    device: Device = None,
    on: On = None,
    jobs: Jobs = 8,
) -> None:
    """Caption every image with an image-to-text model. Resumable, in shards; the result is a source to join by key."""
    from harness.captioning import CaptionFolder, load_captioner
    from harness.captioning import caption as carry_out
    from harness.config.load import load_captioner_spec
    from harness.data.dataset.dataset import open_dataset
    from harness.node.feature_sets import chosen_device

    project, data = _files(spec, set_)
    settings, part = load_captioner_spec(captioner), part_of(shard)
    bare = type(data).model_validate(data.model_dump() | {"pseudo": {}})
    folder = CaptionFolder(out, settings, open_dataset(bare, project.store.data))
    folder.begin()
    if on is not None:
        more = [str(captioner.resolve()), "--out", str(out.resolve())]
        _submit(on, project, "caption", spec, set_, more, jobs)
        return
    if folder.missing(part):
        model = load_captioner(settings, chosen_device(device))
        done, empty = carry_out(folder, model, part, lambda text: print(text, file=sys.stderr))
        print(f"{done:,} samples captioned{f', {empty:,} of them with nothing' if empty else ''}")
    left = len(folder.missing())
    name = "".join(letter if letter.isalnum() else "_" for letter in out.name)
    ready = f'declare it: data.pseudo.{name} = {{ path = "{out}", raw = "raw" }}'
    print(f"{out}: {ready if not left else f'{left} of {folder.parts} parts are left to other shards'}")


@data_app.command()
def analyze(
    spec: Spec,
    set_: Set,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: store/reports.")] = None,
    queries: Annotated[
        int, typer.Option(min=2, help="Number of captions and images whose neighbours are searched.")
    ] = 2000,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode images; 0: one for each core.")] = 0,
) -> None:
    """Analyse the captions as in FFF's Figures 2 to 5: write a page with plots, thresholds and galleries."""
    from harness.analysis import Options, analyse, write_page
    from harness.base.machine import cores
    from harness.node import feature_sets as features_of

    project, used = _project(spec), features_of.chosen_device(device)
    for number, one in enumerate(features_of.feature_sets(project.plan(spec, set_), project, every_source=True)):
        for sentence in one.wanted.reopen_damaged():
            print(sentence, file=sys.stderr)
        while not one.wanted.is_done:
            extraction = one.extraction(used, workers or cores())
            print(said_of(extraction.estimate(), one.wanted.folder, 1), file=sys.stderr)
            extraction.compute(said=lambda text: print(text, file=sys.stderr))
        found = analyse(one.wanted, Options(queries=queries), used)
        page = (out or project.store.reports) / f"{spec.stem}-data{f'-{number}' if number else ''}.html"
        write_page(page, found, one.wanted.dataset, spec.stem)
        print(page)


@data_app.command()
def openclipart(
    spec: Spec,
    set_: Set,
    package: Annotated[
        Path | None,
        typer.Option(
            "--package",
            metavar="FILE",
            help="The package's .deb file, or a folder of its drawings. Default: the installed package.",
        ),
    ] = None,
) -> None:
    """Make the data of a spec with data.kind = "openclipart", unless it is there, and print what was made.

    Runs make it themselves where the package openclipart-svg is installed.
    """
    from harness.base.files import read_json
    from harness.config.data import OpenclipartData
    from harness.data.openclipart.build import COUNTS, sentences
    from harness.data.openclipart.package import INSTALLED
    from harness.data.synthetic.embedded import home
    from harness.data.synthetic.materialise import materialise

    project, experiment = experiment_of(spec, set_)
    match data := experiment.data:
        case OpenclipartData():
            materialise(data, project.store.data, package or INSTALLED)
        case _:
            raise SpecError(f"data.kind is {data.kind}", where=str(spec), fix='set data.kind = "openclipart"')
    folder = home(data, project.store.data)
    print(folder)
    for sentence in sentences(read_json(folder / COUNTS)):
        print(sentence)


def _submit(target: str, project: Project, verb: str, spec: Path, set_: list[str], more: list[str], jobs: int) -> None:
    from harness.execute.slurm.data_jobs import on_cluster

    array = on_cluster(target, project.store, verb, spec, set_, more, jobs)
    print(f"submitted {jobs} jobs as array {array}; `squeue --job {array}` shows it; repeat the command to resume")


def said_of(estimate: Estimate, folder: Path, shards: int) -> str:
    """Format an estimate as a sentence."""
    from harness.cli.output import seconds

    each = f", in {shards} shards {seconds(estimate.seconds / shards)} each" if shards > 1 else ""
    return (
        f"{folder}: {estimate.images:,} images and {estimate.texts:,} texts to encode, "
        f"{estimate.bytes / 1e9:.3f} GB, about {seconds(estimate.seconds)} on this machine{each}"
    )


def experiment_of(spec: Path, assignments: list[str]) -> tuple[Project, Experiment]:
    """The project that `spec` belongs to, and its base experiment.

    Raises:
        SpecError: the spec is not valid.
    """
    from harness.config.load import load

    return _project(spec), load(spec, assignments).experiment


def _project(spec: Path) -> Project:
    from harness.planning.workspace import Project

    project = Project.at(spec.parent)
    project.store.begin()
    return project


def _files(spec: Path, assignments: list[str]) -> tuple[Project, FileData]:
    from harness.data.synthetic.materialise import as_files

    project, experiment = experiment_of(spec, assignments)
    return project, as_files(experiment.data, project.store.data)


def part_of(stated: str) -> tuple[int, int]:
    """Parse I and N from the text of `--shard I/N`.

    Raises:
        SpecError: the text has another form.
    """
    number, _, total = stated.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        fix = "count from 0: --shard 0/8 to --shard 7/8"
        raise SpecError(f"{stated!r} is not a valid shard", where="--shard", fix=fix)
    return int(number), int(total)
