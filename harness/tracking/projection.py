"""What MLflow should hold, as plain values: an entry for each run, for each arm over its seeds, and for the report."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.config.experiment import flatten
from harness.planning.evaluation_sets import EvaluationSets
from harness.planning.plan import Arm, Plan
from harness.runs.folder import RunFolder, State
from harness.runs.identity import digest
from harness.runs.integrity import require_unchanged
from harness.runs.metrics import metric_ids
from harness.runs.planned import PlannedRun
from harness.runs.record import DataReport, Record, StepMetrics
from harness.runs.store import Store
from harness.runs.suite_averages import averages
from harness.tracking.model import Logged

VERSION = 2
"""Raise it when the same files should look otherwise in MLflow: everything is then looked at once more."""
NAME_LIMIT = 250
VALUE_LIMIT = 5000
STATUS = {
    State.DONE: "FINISHED",
    State.FAILED: "FAILED",
    State.INTERRUPTED: "KILLED",
    State.RUNNING: "RUNNING",
    State.MISSING: "SCHEDULED",
}
BASELINE_COLOUR = "#6b7280"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a6761d")
"""Of arms in the plan's order (Okabe and Ito's, which the colour-blind can tell apart); an arm's runs share its own."""


@dataclass(frozen=True)
class ProjectedRun:
    """A run of the plan as its folder stands now."""

    run: PlannedRun
    folder: RunFolder
    state: State
    arm: Arm | None
    """None for a run that only teaches others."""
    seed: int | None
    colour: str
    is_first: bool
    """Whether it is its arm's first seed, or a teacher."""
    stamp: str
    """Digest of all that its entry is made from."""
    sets: EvaluationSets
    """The evaluation sets of this machine: of a record only what the plan asks for is projected."""

    def record(self) -> Record:
        """The record, with the evaluations that the plan asks for.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        record = self.folder.record(self.run.identity)
        found = self.sets.taken(record, self.run.experiment)
        return record.model_copy(update={"evaluations": found.evaluations})

    def lines(self) -> list[StepMetrics]:
        """What the training has logged, of evaluation sets what the plan asks for.

        Raises:
            StoreError: the record is damaged, or the lines were changed since the run ended.
        """
        record = self.folder.record(self.run.identity) if self.state is State.DONE else None
        if record is not None:
            require_unchanged(record, self.folder.metrics)
        return self.sets.curve(self.run.experiment, record).of_lines(self.folder.step_metrics())


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True)
class Input:
    """A data set as MLflow lists it."""

    name: str
    digest: str
    source: str
    """JSON."""
    profile: str
    """JSON."""


@dataclass(frozen=True)
class MlflowRun:
    """What one MLflow run should hold."""

    key: str
    """Finds it again: the run's id, `arm:` and a digest, or `report`."""
    name: str
    status: str
    started_ms: int | None
    ended_ms: int | None
    stamp: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[StepMetrics] = ()
    """Metrics by step."""
    points: Sequence[Point] = ()
    """Final metrics."""
    data: Input | None = None
    files: Sequence[Path] = ()
    model: Logged | None = None
    """The model that came out, to be loaded back."""
    moves: bool = False
    """Whether its final metrics change as runs finish (means over seeds); those of a run do not."""


def cells_of(plan: Plan, store: Store, skipped: list[str]) -> list[ProjectedRun]:
    """Every run of the plan, teachers among them; a folder that cannot be read goes to `skipped` as a sentence."""
    places = {run: place for place, run in plan.cells.items()}
    arms, colours = {arm.name: arm for arm in plan.arms}, _colours(plan)
    sets = EvaluationSets.of(store)
    cells = []
    for run in plan.runs.values():
        folder = store.run(run.id)
        name, seed = places.get(run.id, (None, None))
        arm = arms[name] if name is not None else None
        try:
            state = folder.state()
            left_out = _left_out(folder, state, run, sets)
        except StoreError as error:
            skipped.append(str(error))
            continue
        colour = colours[name] if name is not None else BASELINE_COLOUR
        facts = [
            VERSION,
            run.id,
            run.role,
            name,
            arm.label if arm else None,
            seed,
            colour,
            state,
            _content(folder),
            *left_out,
        ]
        first = seed in (None, plan.ablation.seed_list[0])
        cells.append(ProjectedRun(run, folder, state, arm, seed, colour, first, digest(facts), sets))
    return cells


def arm_stamp(plan: Plan, cells: Sequence[ProjectedRun]) -> str:
    """Digest of all that the entry of an arm is made from."""
    return digest([VERSION, plan_digest(plan), *(cell.stamp for cell in cells)])


def plan_digest(plan: Plan) -> str:
    """Changes when another set of runs belongs to the plan."""
    return digest(sorted([name, seed, run] for (name, seed), run in plan.cells.items()))


def arm_key(arm: Arm, cells: Sequence[ProjectedRun]) -> str:
    """Names an arm by what it is, so that one that was changed becomes another, with the old one kept beside it."""
    payload = {key: value for key, value in cells[0].run.identity.payload.items() if key != "seed"}
    return f"arm:{digest([arm.name, payload])}"


def run_entry(cell: ProjectedRun) -> MlflowRun:
    """The entry of a run that has a folder.

    Raises:
        StoreError: one of its files cannot be read.
    """
    folder, done = cell.folder, cell.state is State.DONE
    resolved = folder.resolved()
    record = cell.record() if done else None
    lines = cell.lines()
    started = record.started_at if record else folder.spec.stat().st_mtime
    name = f"{cell.arm.label} · seed {cell.seed}" if cell.arm else f"teacher {cell.run.id}"
    files = [folder.spec, folder.record_file, *([] if done else [folder.failure_file])]
    return MlflowRun(
        key=cell.run.id,
        name=name[:NAME_LIMIT],
        status=STATUS[cell.state],
        started_ms=_ms(started),
        ended_ms=_ended_ms(cell, record, lines),
        stamp=cell.stamp,
        params=_params(resolved),
        tags=_run_tags(cell, record),
        lines=lines,
        points=_final_points(record, lines) if record else (),
        data=_input(cell, record.data) if record else None,
        files=[file for file in files if file.exists()],
        model=_model(cell) if done else None,
    )


def arm_entry(plan: Plan, arm: Arm, cells: Sequence[ProjectedRun], records: Sequence[Record]) -> MlflowRun:
    """The entry of an arm: the parent of its runs, with the means over the `records` of the seeds that are done."""
    resolved = {key: value for key, value in cells[0].run.identity.resolved.items() if key != "seed"}
    ended = max((record.ended_at for record in records), default=None)
    tags = {
        "harness.role": "arm",
        "harness.arm": arm.name,
        "harness.baseline": "yes" if arm.name == plan.ablation.baseline else "no",
        "harness.seeds_done": f"{len(records)} of {len(cells)}",
        "harness.planned": "yes",
        "mlflow.runColor": cells[0].colour,
        "mlflow.source.name": "harness",
    }
    return MlflowRun(
        key=arm_key(arm, cells),
        name=arm.label[:NAME_LIMIT],
        status=_arm_status([cell.state for cell in cells]),
        started_ms=min(map(_ms, [*(record.started_at for record in records), *_begun(cells)]), default=None),
        ended_ms=_ms(ended) if ended is not None else None,
        stamp=arm_stamp(plan, cells),
        params=_params(resolved),
        tags=tags | _protocol_tags(records),
        points=_means(records),
        moves=True,
    )


def report_entry(pages: Sequence[Path], stamps: Iterable[str], name: str) -> MlflowRun:
    """The entry that carries the report's files; it is new when a run is."""
    tags = {"harness.role": "report", "harness.planned": "yes", "mlflow.source.name": "harness"}
    stamp = digest([VERSION, "report", [page.name for page in pages], *stamps])
    return MlflowRun("report", name[:NAME_LIMIT], "FINISHED", None, None, stamp, tags=tags, files=pages, moves=True)


def allowed_names(names: Iterable[str]) -> dict[str, str]:
    """Metric names as MLflow takes them (`recall@5` becomes `recall_at_5`); two names never become one."""
    taken: dict[str, str] = {}
    for name in sorted(set(names)):
        short = re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)
        if posixpath.normpath(short) != short or short.startswith(("/", ".")):
            short = re.sub(r"[/.]", "_", short) or "_"
        if len(short) > NAME_LIMIT or short in taken.values():
            short = f"{short[: NAME_LIMIT - 13]}_{digest(name)}"
        taken[name] = short
    return taken


def lines_digest(lines: Sequence[StepMetrics]) -> str:
    """Tells whether lines that were sent are still those of the file."""
    content = json.dumps([[line.step, line.time, line.values] for line in lines], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def line_points(lines: Sequence[StepMetrics], *, first: int = 0) -> list[Point]:
    """The values of `lines[first:]` with the file's own timestamps, which makes sending them twice harmless."""
    names = allowed_names(name for line in lines for name in line.values)
    rest = lines[first:]
    return [
        Point(names[name], value, _ms(line.time), line.step) for line in rest for name, value in line.values.items()
    ]


def _colours(plan: Plan) -> dict[str, str]:
    baseline = plan.ablation.baseline
    others = [arm.name for arm in plan.arms if arm.name != baseline]
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(others)} | {baseline: BASELINE_COLOUR}


def _content(folder: RunFolder) -> list[str | int]:
    files = [folder.record_file, folder.failure_file]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "" for file in files]
    return [*digests, folder.metrics.stat().st_size if folder.metrics.exists() else 0]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _params(resolved: Mapping[str, Any]) -> dict[str, str]:
    values = {path: _text(value) for path, value in flatten(dict(resolved)).items()}
    names = allowed_names(values)
    return {names[path]: value for path, value in values.items()}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= VALUE_LIMIT else f"{text[: VALUE_LIMIT - 20]}... {digest(text)}"


def _ended_ms(cell: ProjectedRun, record: Record | None, lines: Sequence[StepMetrics]) -> int | None:
    if record:
        return _ms(record.ended_at)
    if cell.state is State.RUNNING:
        return None
    if cell.folder.failure_file.exists():
        return _ms(cell.folder.failure().ended_at)
    return _ms(lines[-1].time if lines else cell.folder.spec.stat().st_mtime)


def _run_tags(cell: ProjectedRun, record: Record | None) -> dict[str, str]:
    tags = {
        "harness.run_id": cell.run.id,
        "harness.role": "run" if cell.arm else "teacher",
        "harness.state": str(cell.state),
        "harness.planned": "yes",
        "mlflow.runColor": cell.colour,
        "mlflow.source.name": "harness",
    }
    if cell.arm:
        tags |= {"harness.arm": cell.arm.name, "harness.seed": str(cell.seed)}
    if cell.run.teacher:
        tags["harness.teacher"] = cell.run.teacher
    if record:
        tags |= {"harness.cause": "completed", "harness.attempts": str(record.attempts)}
        tags["harness.device"] = record.cost.device
        tags |= {f"harness.version.{name}": version for name, version in record.versions.items()}
        tags |= _protocol_tags([record])
        if commit := record.versions.get("commit"):
            tags["mlflow.source.git.commit"] = commit
    elif cell.folder.failure_file.exists():
        failure = cell.folder.failure()
        tags |= {"harness.cause": failure.cause, "harness.message": failure.message[:VALUE_LIMIT]}
    elif cell.state is State.INTERRUPTED:
        tags["harness.cause"] = "interrupted"
    return tags


def _left_out(folder: RunFolder, state: State, run: PlannedRun, sets: EvaluationSets) -> list[str]:
    """Which metrics of a record its entry does without, since the plan does not ask for them; none for most runs.

    It changes where the spec asks otherwise or a set has other contents, and so does the entry.
    """
    if state is not State.DONE:
        return []
    try:
        record = folder.record()
    except StoreError:
        return []  # said when it is the run's turn
    asked = sets.taken(record, run.experiment).evaluations
    taken, every = ({id for one in some for id in metric_ids(one).values()} for some in (asked, record.evaluations))
    return sorted(every - taken)


def _protocol_tags(records: Sequence[Record]) -> dict[str, str]:
    protocols: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for evaluation in (*record.evaluations, *averages(record.evaluations)):
            protocols[evaluation.set].add(evaluation.protocol_id)
    tags = {f"harness.protocol.{name}": " ".join(sorted(ids)) for name, ids in protocols.items()}
    names = allowed_names(tags)
    return {names[tag]: value for tag, value in tags.items()}


def _final_points(record: Record, lines: Sequence[StepMetrics]) -> list[Point]:
    logged = {name for line in lines for name in line.values}
    values = {name: value for name, value in record.final.items() if name not in logged}
    for evaluation in (*record.evaluations, *averages(record.evaluations)):
        for name, metric in evaluation.metrics.items():
            values[f"{evaluation.set}/{name}"] = metric.value
            if metric.standard_error is not None:
                values[f"{evaluation.set}/{name}_standard_error"] = metric.standard_error
    cost = {f"cost/{name}": value for name, value in record.cost if isinstance(value, float)}
    seen = {"samples_seen": record.samples_seen, "epochs": record.epochs, "data/samples": record.data.samples}
    rejected = {f"data/rejected/{reason}": count for reason, count in record.data.rejected.items()}
    return _points({**values, **cost, **seen, **rejected}, record.ended_at, record.steps)


def _means(records: Sequence[Record]) -> list[Point]:
    """Mean and standard deviation over seeds of every metric that all of them have under one identity."""
    if not records:
        return []
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        for evaluation in (*record.evaluations, *averages(record.evaluations)):
            for name, id in metric_ids(evaluation).items():
                values[(f"{evaluation.set}/{name}", id)].append(evaluation.metrics[name].value)
    whole = {name: numbers for (name, _), numbers in values.items() if len(numbers) == len(records)}
    summary = {name: statistics.fmean(numbers) for name, numbers in whole.items()}
    if len(records) > 1:
        summary |= {f"{name}_sd": statistics.stdev(numbers) for name, numbers in whole.items()}
    return _points({**summary, "seeds": len(records)}, max(record.ended_at for record in records), 0)


def _points(values: Mapping[str, float], time: float, step: int) -> list[Point]:
    names = allowed_names(values)
    return [Point(names[name], float(value), _ms(time), step) for name, value in values.items()]


def _input(cell: ProjectedRun, data: DataReport) -> Input:
    spec = cell.run.experiment.data
    source = json.dumps({"fingerprint": data.fingerprint, **spec.science(defaults=True)}, sort_keys=True)
    profile = json.dumps({"samples": data.samples, "rejected": data.rejected}, sort_keys=True)
    return Input(spec.kind, data.fingerprint[:36], source, profile)


def _model(cell: ProjectedRun) -> Logged | None:
    """The model of an arm's first seed and of a teacher: one for each arm, since weights are large."""
    weights = cell.folder.weights
    return Logged(weights, cell.run.experiment.model) if cell.is_first and weights.exists() else None


def _begun(cells: Sequence[ProjectedRun]) -> list[float]:
    """When runs without a record began; those with one say it themselves."""
    unfinished = [cell for cell in cells if cell.state not in (State.DONE, State.MISSING)]
    return [cell.folder.spec.stat().st_mtime for cell in unfinished]


def _arm_status(states: Sequence[State]) -> str:
    for state in (State.RUNNING, State.FAILED, State.INTERRUPTED, State.MISSING):
        if state in states:
            return STATUS[state]
    return STATUS[State.DONE]
