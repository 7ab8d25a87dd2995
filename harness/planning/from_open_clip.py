"""A command line of open_clip_train, or the params.txt that it leaves, as an experiment file."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from harness.base.errors import SpecError
from harness.base.files import write_text
from harness.config.load import load_experiment

WHERE = "harness import open_clip"
_PRECISIONS = {
    "amp": "float16",
    "amp_bf16": "bfloat16",
    "amp_bfloat16": "bfloat16",
    "fp32": "float32",
}
_FLAGS = """
train_data dataset_type csv_separator csv_img_key csv_caption_key batch_size accum_freq epochs epochs_cooldown warmup lr
beta1 beta2 eps wd skip_scheduler lr_scheduler lr_cooldown_end precision model pretrained lock_image
lock_image_unlocked_groups lock_text lock_text_unlocked_layers grad_checkpointing torchcompile grad_clip_norm seed
siglip aug_cfg world_size opt
"""
_TRANSLATED = frozenset(_FLAGS.split())
_NEEDLESS = {
    "train_num_samples": "the harness counts the samples",
    "local_loss": "the loss is exact over all devices without it",
    "gather_with_grad": "gradients always go through all devices",
    "workers": "is not part of an experiment",
    "name": "the file and the run's id name it",
    "resume": "runs resume by themselves",
}
_UNPARSED = ("rank", "local_rank", "distributed", "device", "log_path", "log_level", "checkpoint_path", "tensorboard")
"""Lines of params.txt that are no flags, by their beginnings."""


class Imported(NamedTuple):
    """What a command line became."""

    text: str
    """The experiment, TOML."""
    left_out: tuple[str, ...]
    """A sentence for each flag without a counterpart."""


def write_experiment(arguments: Sequence[str], out: Path, gpus: int | None) -> tuple[str, ...]:
    """Write the experiment of a command line (or of a params.txt, if that is the only argument) to a new file.

    Args:
        gpus: processes of the training, which multiply the batch; default: as stated, else 1.

    Returns:
        A sentence for each flag without a counterpart.

    Raises:
        SpecError: an argument is not of open_clip_train, or the result is no valid experiment.
    """
    if out.exists():
        raise SpecError("is there already", where=str(out), fix="name another file with --out")
    imported = translate(*_read(arguments, gpus))
    write_text(out, imported.text)
    try:
        load_experiment(out)
    except SpecError:
        out.unlink()
        raise
    return imported.left_out


def translate(values: Mapping[str, Any], stated: frozenset[str], gpus: int) -> Imported:
    """The experiment of open_clip_train's parsed arguments.

    Args:
        values: all arguments by name, defaults among them.
        stated: names of those that were stated.
        gpus: processes of the training.

    Raises:
        SpecError: an argument has a value that the harness does not have.
    """
    train = _train(values, gpus)
    tables: dict[str, dict[str, Any]] = {
        "": {"seed": values["seed"]},
        "data": _data(values),
        "captions": {"count": 0},
        "loss": _loss(values),
        "model": _model(values),
        "train": train,
        "train.optimiser": {
            "lr": values["lr"],
            "beta1": values["beta1"],
            "beta2": values["beta2"],
            "eps": values["eps"],
            "weight_decay": values["wd"],
        },
        "train.lock": _lock(values),
        "resources": _resources(values),
    }
    left_out = tuple(
        f"--{name.replace('_', '-')} {_shown(values[name])}: {_NEEDLESS.get(name, 'has no counterpart')}"
        for name in sorted(stated - _TRANSLATED)
    )
    lines = ["# Written by `harness import open_clip`. Flags that were not stated have open_clip's defaults.", ""]
    lines += [f"# {sentence}" for sentence in left_out] + [""] * bool(left_out)
    for name, table in tables.items():
        if table:
            lines += (
                ([f"[{name}]"] if name else []) + [f"{key} = {_toml(value)}" for key, value in table.items()] + [""]
            )
    return Imported("\n".join(lines), left_out)


def _read(arguments: Sequence[str], gpus: int | None) -> tuple[dict[str, Any], frozenset[str], int]:
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        values = _of_params(Path(arguments[0]))
        usual = _parsed([f"--model={values['model']}"]) if values.get("model") else _parsed([])
        named = {name: values[name] for name in values if name in usual}
        stated = frozenset(name for name, value in named.items() if value != usual[name])
        return usual | named, stated, gpus or int(values.get("world_size") or 1)
    flags = list(arguments)
    processes = 1
    for position, word in enumerate(flags):
        if word in ("open_clip_train.main", "training.main") or word.endswith("main.py"):
            processes, flags = _processes(flags[:position]), flags[position + 1 :]
            break
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in flags if word.startswith("--")}
    return _parsed(flags), frozenset(names), gpus or processes


def _processes(launcher: Sequence[str]) -> int:
    """Processes that torchrun starts."""
    count = 1
    words = [part for word in launcher for part in word.split("=", 1)]
    for name, value in pairwise(words):
        if name.replace("_", "-") in ("--nproc-per-node", "--nnodes") and value.isdecimal():
            count *= int(value)
    return count


def _parsed(flags: Sequence[str]) -> dict[str, Any]:
    from open_clip_train.params import parse_args  # argparse alone

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return dict(vars(parse_args(list(flags))))
    except SystemExit:
        what = (said.getvalue().strip().splitlines() or ["--help was given"])[-1].partition("error: ")[2]
        raise SpecError(f"open_clip_train does not accept it ({what})", where=WHERE, fix="correct the flags") from None
    except ValueError as error:
        raise SpecError(f"open_clip_train does not accept it ({error})", where=WHERE, fix="write NAME=VALUE") from None


def _of_params(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot be read ({error})", where=str(file), fix="give a params.txt, or flags after --"
        ) from None
    values = {}
    for line in lines:
        name, colon, text = line.partition(": ")
        if colon:
            try:
                values[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                values[name] = text
    if "batch_size" not in values:
        raise SpecError("is not a params.txt of open_clip_train", where=str(file), fix="give one, or flags after --")
    return {name: value for name, value in values.items() if not name.startswith(_UNPARSED)}


def _data(values: Mapping[str, Any]) -> dict[str, Any]:
    path, kind = values["train_data"], values["dataset_type"]
    if not path or kind == "synthetic":
        raise SpecError("names no training data", where=f"{WHERE}: --train-data", fix="state it")
    if path.startswith("pipe:"):
        fix = "give the URL itself; `harness data fetch` copies it"
        raise SpecError("is a command", where=f"{WHERE}: --train-data", fix=fix)
    located = path if "://" in path else "::".join(os.path.abspath(part) for part in path.split("::"))
    if kind == "csv" or (kind == "auto" and path.endswith((".csv", ".tsv"))):
        columns = {"image": values["csv_img_key"], "raw": values["csv_caption_key"]}
        form = {"separator": values["csv_separator"], "image_root": os.getcwd(), "repeats": "samples"}
        return {"kind": "table", "path": located, **columns, **form}
    return {"kind": "webdataset", "shards": located, "raw": "txt", "pseudo": {}}


def _loss(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["siglip"]:
        return {"kind": "sigmoid", "logit_scale": 10.0, "logit_bias": -10.0, "max_logit_scale": 100.0}
    return {"kind": "infonce"}


def _model(values: Mapping[str, Any]) -> dict[str, Any]:
    weights = values["pretrained"]
    if weights and os.path.exists(weights):
        weights = os.path.abspath(weights)
    return {"name": values["model"]} | ({"weights": weights, "temperature": "weights"} if weights else {})


def _train(values: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    if values["opt"] != "adamw":
        raise SpecError(f"{values['opt']!r} is not here", where=f"{WHERE}: --opt", fix="the harness trains with adamw")
    if values["precision"] not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        raise SpecError(
            f"{values['precision']!r} is not here", where=f"{WHERE}: --precision", fix=f"take one of {known}"
        )
    scale = (values["aug_cfg"] or {}).get("scale") or (0.9, 1.0)
    augment = {"kind": "crop", "min_scale": scale[0], "max_scale": scale[1], "flip": 0.0}
    cools = values["lr_scheduler"] == "const-cooldown"
    constant = values["skip_scheduler"] or values["lr_scheduler"] != "cosine"
    table = {
        "duration": f"{values['epochs']} epochs",
        "global_batch_size": values["batch_size"] * values["accum_freq"] * gpus,
        "augment": augment,
        "schedule": "constant" if constant else "cosine",
        "warmup": f"{0 if values['skip_scheduler'] else values['warmup']} steps",
        "precision": _PRECISIONS[values["precision"]],
    }
    if values["model"].startswith("RN"):  # batch norm sees the images of one device
        table["virtual_batch_size"] = values["batch_size"]
    if cools and values["epochs_cooldown"]:
        table |= {"cooldown": f"{values['epochs_cooldown']} epochs", "end_lr": values["lr_cooldown_end"] / values["lr"]}
    if values["grad_clip_norm"]:
        table["grad_clip"] = values["grad_clip_norm"]
    return table


def _lock(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if values["lock_image"]:
        found |= {"image": True, "image_unlocked_groups": values["lock_image_unlocked_groups"]}
    if values["lock_text"]:
        found |= {"text": True, "text_unlocked_layers": values["lock_text_unlocked_layers"]}
    return found


def _resources(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {"gradient_checkpointing": values["grad_checkpointing"], "compile": values["torchcompile"]}
    return {name: True for name, on in named.items() if on}


def _shown(value: Any) -> str:
    return "" if value is True else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }" if value else "{}"
    return json.dumps(value, ensure_ascii=False)
