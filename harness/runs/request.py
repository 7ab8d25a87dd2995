"""How to carry a run out, here and now: what stands in request.json beside the frozen spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.files import read_json
from harness.config.base import plain
from harness.config.evaluation import ADDRESSING, Evaluation
from harness.config.experiment import Experiment
from harness.config.parts import with_kept_parts
from harness.config.protocols import VARIANTS, parted
from harness.config.suites import annotations_at, places
from harness.runs.folder import RunFolder
from harness.runs.identity import digest
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.runs.versions import unreadable


class Request(BaseModel):
    """Everything that a node needs besides the frozen spec. Written anew for each attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    run_id: str
    experiment: Experiment
    """With its seed, and with the paths of this machine."""
    teacher_run: str | None = None
    """Run whose weights are the teacher's."""
    store: Path
    evaluation_root: Path | None = None
    threads: int = 1
    """Threads of the training process."""
    gpu: int | None = None
    """Which of the visible GPUs to use."""
    processes: int = 1
    """How many processes share each global batch; whoever starts the run may replace what the spec says."""
    shape: str = ""
    """What its time depends on; finished runs of the same shape tell what others will cost."""

    phase: Literal["run", "train", "evaluate"] = "run"
    """`train` leaves the evaluation to a job of its own."""
    submission: str = ""
    """The submission to SLURM that has the run; jobs of others leave it alone."""
    since: int = 0
    """Attempts up to this number are not counted when it is judged whether trying again is of use."""

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        run_id: str,
        teacher: str | None,
        settings: Settings,
        threads: int,
        gpu: int | None = None,
    ) -> Request:
        """The request of one planned run on this machine. Copies parts of a user's own into the run's folder.

        Raises:
            StoreError: the folder cannot be written, or holds a part that was changed there.
            SpecError: a part was changed since the spec was read.
        """
        experiment = with_kept_parts(experiment, Store(settings.store).run(run_id).parts)
        present = on_this_machine(experiment.evaluation, settings.evaluation_root)
        return cls(
            run_id=run_id,
            experiment=Experiment.model_validate({**dict(experiment), "evaluation": present}),
            teacher_run=teacher,
            store=settings.store,
            evaluation_root=settings.evaluation_root,
            threads=threads,
            gpu=gpu,
            processes=experiment.resources.processes,
            shape=shape(experiment),
        )

    def written(self) -> dict[str, Any]:
        """The contents of request.json: fields at their default are left out, so that older code can read it.

        A job that is queued runs the code that submitted it, and may meet a request that newer code has written. If
        the two differ in a default, the node refuses the run when it compares its spec with spec.json.
        """
        kept = self.model_dump(mode="json", exclude_defaults=True)
        table: dict[str, Any] = _with_kinds(kept, self.model_dump(mode="json"))
        return table

    @property
    def stored(self) -> Store:
        """The store as an object."""
        return Store(self.store, self.evaluation_root)


def read_request(folder: RunFolder) -> Request:
    """The request in a run folder.

    Raises:
        StoreError: request.json is missing or damaged, or a newer harness wrote it.
    """
    try:
        return Request.model_validate(read_json(folder.request))
    except ValidationError as error:
        raise unreadable(error, folder.request, "start the run with `harness run`") from None


def _with_kinds(brief: Any, full: Any) -> Any:
    """`brief` with the `kind` of every spec in it, which says what the spec is and so what its defaults are."""
    match brief, full:
        case dict(), dict():
            kept = {name: _with_kinds(value, full[name]) for name, value in brief.items()}
            return kept | ({"kind": full["kind"]} if "kind" in full else {})
        case list(), list():
            return [_with_kinds(*pair) for pair in zip(brief, full, strict=True)]
        case _:
            return brief


def shape(experiment: Experiment) -> str:
    """Runs of one shape take about the same time for a step on the same machine."""
    return digest(
        {
            "model": plain(experiment.model, False),
            "batch": experiment.train.global_batch_size,
            "captions": experiment.captions.per_image,
            "taught": experiment.uses_teacher,
            "data": experiment.data.kind,
        }
        | ({"views": views} if (views := experiment.loss.views_read) else {})
        | ({"texts": texts} if (texts := experiment.loss.text_views_read + experiment.loss.hard_negatives) else {})
        | ({"decoder": True} if experiment.loss.needs_decoder else {})
        | ({"momentum": need[1:] if need.tokens else need[1:3]} if (need := experiment.loss.momentum_need) else {})
    )


def evaluation_key(spec: Evaluation, reference: str) -> str:
    """What was asked for one evaluation set: its name or path as the spec has it, and the options that change its
    numbers."""
    options = {name: value for name, value in spec.under(reference).science().items() if name not in ADDRESSING}
    return digest({"set": reference, "options": options})


def on_this_machine(evaluation: Evaluation, evaluation_root: Path | None) -> Evaluation:
    """`evaluation` with its suites and protocols spelled out, less those of their sets that are not here.

    A set that is stated by its own name stays: where it is missing, that is an error.
    """
    references = evaluation.references
    if references == evaluation.sets:
        return evaluation
    found = [one for one in references if one in evaluation.sets or is_here(one, evaluation, evaluation_root)]
    return Evaluation.model_validate({**dict(evaluation), "sets": tuple(found), "protocols": ()})


def is_here(reference: str, evaluation: Evaluation, evaluation_root: Path | None) -> bool:
    """Whether a set of a suite, with the split and the training part that its protocol needs, is on this machine."""
    name, protocol = parted(reference)
    root = evaluation_root or Path()
    parts = [evaluation.under(reference).split] + ["train"] * bool(protocol and VARIANTS[protocol].probe)
    return any(
        all((root / place / part / "nshards.txt").is_file() for part in parts) or annotations_at(root / place)
        for place in places(name)
    )
