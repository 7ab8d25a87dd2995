"""AdamW with its groups: who decays, and at which share of the learning rate each parameter learns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from harness.base.errors import ModelError
from harness.config.model import Lock, Optimiser
from harness.losses import Objective
from harness.models import Towers

_LAYER = re.compile(r"\.(?:resblocks|blocks|layers?|stages)\.?(\d+)\.")
_DECODER = ".text_decoder."
_EMBEDDING = re.compile(r"embed|\.conv1\.|\.bn1\.|ln_pre|\.stem|class_token|cls_token|reg_token")

Named = tuple[str, nn.Parameter]


def build_optimiser(spec: Optimiser, towers: Towers, objective: Objective) -> torch.optim.AdamW:
    """AdamW over all parameters that are trained; weight decay on those with two or more dimensions.

    Every group carries its peak learning rate as `peak`.

    Raises:
        ModelError: layers cannot be told apart where `layer_decay` asks for it, or `no_decay` names no parameter.
    """
    _check_names(spec, [name for name, _ in towers.named_parameters()])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for peak, part in (
        (spec.image_lr or spec.lr, towers.image_parameters),
        (spec.text_lr or spec.lr, towers.text_parameters),
        (spec.lr, list(objective.named_parameters(prefix="objective"))),
    ):
        scales = _layer_scales(part, spec.layer_decay)
        for name, parameter in part:
            if parameter.requires_grad:
                decay = spec.weight_decay if _decays(name, parameter, spec) else 0.0
                groups.setdefault((decay, peak * scales[name]), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == 0, -item[0][1]))
    tables: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr": peak, "peak": peak} for (decay, peak), parameters in ordered
    ]
    return torch.optim.AdamW(tables, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)


def lock_towers(towers: Towers, lock: Lock) -> None:
    """Take what `lock` names out of the training.

    Raises:
        ModelError: open_clip cannot lock this model so.
    """
    model: Any = towers.model
    try:
        if lock.image:
            model.lock_image_tower(unlocked_groups=lock.image_unlocked_groups)
        if lock.text:
            model.lock_text_tower(unlocked_layers=lock.text_unlocked_layers)
    except (AssertionError, AttributeError, NotImplementedError, TypeError) as error:
        what = f"open_clip cannot lock {towers.name} so ({str(error).splitlines()[0] or type(error).__name__})"
        raise ModelError(what, where="train.lock", fix="lock whole towers, or leave them unlocked") from error


def _decays(name: str, parameter: nn.Parameter, spec: Optimiser) -> bool:
    return parameter.ndim >= 2 and not any(part in name for part in spec.no_decay)


def _check_names(spec: Optimiser, names: list[str]) -> None:
    for part in spec.no_decay:
        if not any(part in name for name in names):
            what = f"no parameter has {part!r} in its name"
            raise ModelError(what, where="train.optimiser.no_decay", fix=f"names look like {names[0]!r}")


def _layer_scales(part: list[Named], decay: float) -> dict[str, float]:
    """The share of the learning rate of each parameter of one tower: decay to the power of the layers above it.

    Embeddings lie below the first layer, norms and projections above the last (Bao et al., BEiT), as does all of a
    captioning decoder that is trained.
    """
    if decay == 1 or part[0][0].startswith("objective"):
        return dict.fromkeys((name for name, _ in part), 1.0)
    towers = [(name, one) for name, one in part if not (_DECODER in name and one.requires_grad)]
    layers = {name: int(found[1]) for name, _ in towers if (found := _LAYER.search(name))}
    if not layers:
        what = f"the layers of {part[0][0].rsplit('.', 1)[0]!r} and similar parameters cannot be recognised by name"
        raise ModelError(what, where="train.optimiser.layer_decay", fix="leave it at 1 for this model")
    first, top = min(layers.values()), max(layers.values())
    return {name: decay ** (top + 1 - _depth(name, layers, first, top)) for name, _ in part}


def _depth(name: str, layers: dict[str, int], first: int, top: int) -> int:
    if name in layers:
        return layers[name]
    return first - 1 if _EMBEDDING.search(name) else top + 1


def parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that `optimiser` trains, in the order of its groups."""
    groups: Iterable[dict[str, Any]] = optimiser.param_groups
    return [parameter for group in groups for parameter in group["params"]]
