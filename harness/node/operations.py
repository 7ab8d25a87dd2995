"""Count the floating point operations of runs on models without memory: no data, no weights and no GPU are needed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from harness.base.errors import ModelError
from harness.config.experiment import Experiment
from harness.config.model import Model
from harness.models import build_towers
from harness.runs.planned import PlannedRun
from harness.training.speed import counted_flops

IMAGES, TEXTS = 2, 2
"""Size of the batches that are counted. Operations grow in proportion."""
_LARGEST = 2**31
"""Marks the end of a text, as its largest token. A model without memory looks up no token."""


def sample_flops(runs: Iterable[PlannedRun], tokens: int) -> dict[str, float]:
    """Floating point operations of training on one image and its captions, by run id.

    Args:
        tokens: length of each caption, begin and end included. The padding behind it is not encoded, except by text
            towers without a causal mask.

    As `mfu` counts them: the forward pass of each tower, three times for one that is trained, over all views of an
    image and all captions and edits. Momentum towers, a captioning decoder, the loss, mining and the teacher's features
    are not counted.

    Raises:
        ModelError: open_clip has no such model, its tokenizer is not on this machine, or an operation needs values.
    """
    one_of = cache(_one_of)
    return {run.id: _of(run.experiment, *one_of(run.experiment.model.bare().model_dump_json(), tokens)) for run in runs}


def _of(experiment: Experiment, image: float, text: float) -> float:
    loss, lock = experiment.loss, experiment.train.lock
    images = 1 + loss.views_read
    texts = 1 + loss.text_views_read + loss.hard_negatives + (loss.masked_share is not None)
    image_passes = 1 if lock.image and not lock.image_unlocked_groups else 3
    text_passes = 1 if lock.text and not lock.text_unlocked_layers else 3
    return image_passes * images * image + text_passes * experiment.captions.per_image * texts * text


def _one_of(model: str, tokens: int) -> tuple[float, float]:
    """Operations of the forward pass of an image and of a text, through the towers of `model`, a spec as JSON."""
    towers = build_towers(Model.model_validate_json(model), device="meta")
    pixels = torch.empty(IMAGES, 3, towers.image_size, towers.image_size, device="meta")
    context = towers.tokenize(["a"]).shape[1]
    texts = torch.arange(TEXTS).unsqueeze(1).repeat(1, context)  # all different, because equal texts are encoded once
    texts[:, min(tokens, context) - 1] = _LARGEST
    try:
        image = counted_flops(towers, lambda: towers.encode_image(pixels))
        text = counted_flops(towers, lambda: towers.encode_text(texts))
    except NotImplementedError as error:
        what = f"operations of {towers.name} cannot be counted without values ({str(error).partition(':')[0]})"
        raise ModelError(what, where="model", fix="time its steps with --measure") from error
    return image / IMAGES, text / TEXTS
