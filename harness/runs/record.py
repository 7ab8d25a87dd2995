"""What a run leaves behind: one versioned JSON record, the truth that reports and MLflow are projected from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RECORD_VERSION: Literal[1] = 1

Cause = Literal[
    "completed",
    "user_error",
    "out_of_memory",  # records before causes were told apart
    "out_of_memory_host",
    "out_of_memory_gpu",
    "timed_out",
    "preempted",
    "node_failure",
    "cancelled",
    "never_started",
    "no_teacher",
    "superseded",
    "interrupted",
    "crashed",
    "damaged",
]
"""How an attempt ended. `interrupted`: asked to stop by a person; `superseded`: a newer attempt took over.
`no_teacher`: its teacher was not trained when its job began. `damaged` is of no attempt: the run's folder is damaged,
another run's, or made with other defaults."""


Task = Literal[
    "zeroshot_classification", "zeroshot_multilabel", "zeroshot_retrieval", "image_caption_selection", "linear_probe"
]
"""What is measured; a linear probe is asked for by its protocol and needs a classification set."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Metric(_Part):
    """One number with its uncertainty over the samples it was measured on."""

    value: float
    standard_error: float | None = None
    """Standard error over the evaluation samples; None where the metric is no mean over samples."""
    samples: int
    """How many samples the value is a mean over."""
    chance: float | None = Field(default=None, exclude_if=lambda chance: chance is None)
    """The value of a model that guesses, where the set determines it; absent elsewhere."""


class EvaluationResult(_Part):
    """One evaluation set measured under one protocol."""

    set: str
    """Name of the evaluation set, as in `shapes` of the metric `shapes/acc1`."""
    task: Task
    protocol_id: str
    request: str = ""
    """Key of what was asked for (set and options); tells whether a finished run has to be measured again."""
    protocol: dict[str, Any]
    """Everything that a number depends on besides the checkpoint: templates, class names, sample ids, precision..."""
    metrics: dict[str, Metric]
    """By clip-benchmark's names: acc1, acc5, mean_per_class_recall, image_retrieval_recall@k, ..."""
    undefined: tuple[str, ...] = ()
    """Metrics that were asked for and that the set does not define, such as acc5 of three classes."""
    reference: str = ""
    """The set as the spec had it: a name or a path. Empty in records before it was noted."""
    weights: str = ""
    """Digest of the weights that were measured. Empty in records before it was noted."""
    notes: tuple[str, ...] = ()
    """What looks wrong about the set and was measured as it is, a sentence each."""
    captions_cut: float | None = Field(default=None, ge=0, le=1)
    """Share of the captions of a retrieval set that are longer than the text tower's context, which leaves out their
    ends. None for other tasks, and in records before it was noted."""


class SourceShare(_Part):
    """One source of a mixture."""

    samples: int
    """Its samples that can be trained on."""
    share: float
    """Its part of the images of each epoch, 0 to 1."""


class DataReport(_Part):
    """Which samples a run really saw."""

    fingerprint: str
    samples: int = 0
    """Samples in the data set that can be trained on; of a weighted mixture, those of an epoch."""
    sources: dict[str, SourceShare] = {}
    """The sources of a mixture."""
    rejected: dict[str, int] = {}
    """Samples left out, by reason."""
    skipped: dict[str, int] = {}
    """Files and rows left out that are no samples, by reason."""
    notes: tuple[str, ...] = ()
    """What was guessed, converted or passed over while reading, a sentence each."""
    missing: str | None = None
    """Why the data could not be looked at; only in a provisional plan."""
    is_here: bool = Field(default=False, exclude=True)
    """Whether data that could not be looked at is on this machine, and refused."""

    def census(self) -> list[str]:
        """What is trained on and what is left out, a sentence each; empty where nothing is left out or guessed."""
        found = [
            f"source {name}: {100 * one.share:.2f} % of the images, from {one.samples:,} samples"
            for name, one in self.sources.items()
        ]
        left_out = sum(self.rejected.values())
        if left_out:
            what = f"{self.samples:,} of {self.samples + left_out:,} samples are trained on"
            found.append(f"{what}; left out: {reasons(self.rejected)}")
        if self.skipped:
            found.append(f"skipped, because they belong to no sample: {reasons(self.skipped)}")
        return found + list(self.notes)


def reasons(counts: dict[str, int]) -> str:
    """Counts by reason, the largest first, as part of a sentence."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items(), key=lambda one: -one[1]))


class Cost(_Part):
    """What a run used."""

    duration_s: float
    """Time in the training loop, over all attempts."""
    evaluation_s: float
    images_per_s: float
    peak_memory_gb: float
    device: str
    threads: int
    devices: int = 1
    """Devices that trained together, a process each."""
    flops: float | None = None
    """Floating-point operations of the whole training, forward and backward; None where nobody counted."""
    micro_batch_size: int | None = None
    """Images that a process held activations of at a time; None in records of before it was noted."""
    checkpoint_s: float = 0.0
    """How long the last attempt's training stood still for checkpoints."""

    @property
    def device_hours(self) -> float:
        """Training time of all its devices together."""
        return self.duration_s * self.devices / 3600


class TrainingEnd(_Part):
    """How a training ended. The evaluation, which may be another process, makes the record of it."""

    cost: Cost
    steps: int
    started_at: float
    """Unix time of the first logged step."""
    final: dict[str, float]
    """Metrics of the last step."""
    metrics: str
    """SHA-256 of metrics.jsonl."""
    weights: str
    """SHA-256 of weights.pt."""


class Seal(_Part):
    """SHA-256 digests by which changes of a finished run are seen (`harness.runs.integrity`)."""

    files: dict[str, str]
    """Of the run's files, by path in its folder."""
    record: str
    """Of the record's canonical JSON with `files`, without this field."""


class Record(_Part):
    """A finished run."""

    version: Literal[1] = RECORD_VERSION
    run_id: str
    attempts: int
    started_at: float
    """Unix time in seconds."""
    ended_at: float
    steps: int
    samples_seen: int
    epochs: float
    data: DataReport
    final: dict[str, float]
    """Last logged training metrics (loss, logit_scale, positives_per_image, mining_precision...)."""
    evaluations: tuple[EvaluationResult, ...]
    cost: Cost
    versions: dict[str, str]
    """python, torch, open_clip, numpy, harness, commit."""
    seal: Seal | None = None
    """None in records of earlier versions."""


class Failure(_Part):
    """How an attempt ended when it did not complete."""

    cause: Cause
    message: str
    """One sentence for a person."""
    attempt: int
    ended_at: float


class AttemptStart(_Part):
    """Who began an attempt, where and when."""

    number: int
    job: str = ""
    """SLURM's id of the job, `123_4`; empty outside of SLURM."""
    restart: int = 0
    """How often SLURM had queued that job again before."""
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    """Unix time in seconds by the node's clock."""
    gpus: float = 0.0
    """GPUs held; a fraction where runs share one."""
    cores: float = 0.0
    """Processor cores held."""


class AttemptEnd(_Part):
    """How an attempt ended."""

    cause: Cause
    message: str
    step: int = 0
    raised: bool = False
    """Whether the run's own code raised an exception: `log.txt` has its traceback."""
    ended_at: float


class StepMetrics(_Part):
    """One line of metrics.jsonl."""

    step: Annotated[int, Field(ge=0)]
    time: float
    """Unix time in seconds."""
    values: dict[str, float]
    evaluated: dict[str, str] = {}
    """For each metric of an evaluation set among the values, a digest of what it depends on."""
