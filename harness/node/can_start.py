"""Whether the runs of a plan can start on this machine, as far as it can be told without memory and without training.

Models are built on the device `meta`, which has shapes and no values. What a node does before its first step is done on
them: weights are compared by names and shapes, towers are locked, the batch is split, a picture and a text are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from harness.base.errors import HarnessError, ModelError
from harness.config.data import EmbeddedWorld
from harness.config.experiment import Experiment, ExperimentTeacher, OpenClipTeacher, unknown_teacher
from harness.config.model import Model
from harness.config.resources import Resources
from harness.data.dataset.caption_choice import check_available
from harness.data.dataset.dataset import open_dataset
from harness.evaluation.token_wise import NEEDS as TOKEN_WISE_NEEDS
from harness.losses import build_objective
from harness.models import Towers, build_towers, embedding_width
from harness.models.fitting import choose_device, fit_out
from harness.planning.plan import Plan
from harness.planning.preflight import Obstacle
from harness.training.optimiser import build_optimiser, lock_towers
from harness.training.split import is_coupled, split_batch


def obstacles(plan: Plan) -> Iterator[Obstacle]:
    """What would stop runs of `plan` before their first step."""
    seen: set[tuple[str, int]] = set()
    arms = {run: arm for (arm, _), run in reversed(plan.cells.items())}
    for run in plan.runs.values():
        one = run.experiment  # arms share the objects of the sections that they do not change
        parts = {
            "model": (one.model, one.train, one.loss, one.resources),
            "teacher": (one.teacher,) if one.uses_teacher else (),
            "captions": (one.captions, one.data) if not plan.data[run.identity.fingerprint].missing else (),
        }
        for part, sections in parts.items():
            if (key := (part, hash(tuple(map(id, sections))))) in seen or not sections:
                continue
            seen.add(key)
            try:
                match part:
                    case "model":
                        _training(one)
                    case "teacher":
                        _teacher(one)
                    case _:
                        _captions(one, plan.settings.store / "data")
            except HarnessError as error:
                yield Obstacle(error, _key(error, part), arms.get(run.id))


def _key(error: HarnessError, part: str) -> str:
    """The field that an error is about: what it says, unless that is a file."""
    where = error.where or ""
    return where if where.partition(".")[0] in Experiment.model_fields and "/" not in where else part


def _captions(experiment: Experiment, cache: Path) -> None:
    """Make sure that files have as many captions of each source as are asked for; specs of worlds say how many."""
    if not isinstance(experiment.data, EmbeddedWorld) and experiment.captions.count:
        dataset = open_dataset(experiment.data, cache)
        counts = {source: dataset.caption_counts(source) for source in dataset.sources}
        check_available(experiment.captions, counts, dataset.keys)


def _training(experiment: Experiment) -> None:
    train, resources = experiment.train, experiment.resources
    choose_device(resources, 0)
    towers = build_towers(experiment.model, device="meta")
    lock_towers(towers, train.lock)
    if experiment.loss.needs_decoder:
        towers.require_decoder()
    if experiment.loss.masked_share is not None:
        towers.require_words()
    fit_out(towers, Resources.model_validate({**dict(resources), "compile": False}))
    micro = None if resources.micro_batch_size == "auto" else resources.micro_batch_size
    split_batch(train, processes=resources.processes, micro=micro, coupled=is_coupled(towers.model))
    build_optimiser(train.optimiser, towers, build_objective(experiment.loss, width=embedding_width(experiment.model)))
    if any(part.compares_tokens for part in experiment.loss.parts):
        towers.require_tokens()
    measured = experiment.evaluation
    if any(measured.under(reference).similarity == "token_wise" for reference in measured.references):
        towers.require_tokens(*TOKEN_WISE_NEEDS)
    _encode(towers, "model")


def _teacher(experiment: Experiment) -> None:
    teacher = experiment.teacher
    match teacher:
        case OpenClipTeacher(model=name, weights=weights, config=config):
            try:
                towers = build_towers(Model(name=name, weights=weights, config=config), device="meta")
            except ModelError as error:
                where = (error.where or "").replace("model.name", "teacher.model").replace("model.", "teacher.", 1)
                raise type(error)(error.what, where=where, fix=error.fix) from error
            _encode(towers, "teacher")
        case ExperimentTeacher(experiment=trained, resize=int()):  # a run of its own; here only its size counts
            towers = build_towers(trained.model, device="meta")
        case ExperimentTeacher() | None:
            return
        case _:
            raise unknown_teacher(teacher)
    if teacher.resize is not None:
        towers.resize_first(teacher.resize)


def _encode(towers: Towers, section: str) -> None:
    """Encode a picture of the model's size and a text."""
    try:
        with torch.no_grad():
            towers.eval()
            size = towers.image_size
            image = towers.encode_image(torch.empty(1, 3, size, size, device="meta"))
            text = towers.encode_text(towers.tokenize(["a photo"]))
    except NotImplementedError:
        return  # an operation that cannot be done without values
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = (
            f"{towers.name} cannot encode pictures of {size} px and texts ({next(iter(str(error).splitlines()), '')})"
        )
        fix = "make image_size, patch_size, context_length and vocab_size of the configuration fit together"
        raise ModelError(what, where=f"{section}.config", fix=fix) from error
    if image.shape != text.shape:
        what = f"{towers.name} gives images {image.shape[1]} and texts {text.shape[1]} dimensions"
        raise ModelError(what, where=f"{section}.config", fix="give both towers the same embed_dim")
