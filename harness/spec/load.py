"""From TOML files to specs: `extends`, paths relative to the file that states them, teachers by path."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError
from harness.spec.ablation import Ablation
from harness.spec.data import PATH_FIELDS
from harness.spec.experiment import Experiment
from harness.spec.explain import explain
from harness.spec.overrides import Table, expand, merge, parse_assignment

ONLY_ARM = "experiment"


def load(path: str | Path, assignments: Sequence[str] = ()) -> Ablation:
    """The ablation in a TOML file, or an experiment file as an ablation of one arm.

    Args:
        path: an ablation file (it has a `question`) or an experiment file.
        assignments: changes like `"train.duration=300 steps"`, laid over the base experiment.

    Raises:
        SpecError: the file, or a file that it names, is missing or not valid.
    """
    file = Path(path)
    table = _read(file)
    changes = expand({})
    for text in assignments:
        changes = merge(changes, expand(dict([parse_assignment(text)])))
    if "question" in table or "arms" in table or "axes" in table:
        return _ablation(file, table, changes)
    experiment = load_experiment(file)
    primary = f"{experiment.evaluation.sets[0]}/acc1" if experiment.evaluation.sets else "train/loss"
    ablation = {"question": f"How does {file.stem} do?", "base": changes, "baseline": ONLY_ARM, "primary": primary}
    return _validated(file, ablation | {"arms": {ONLY_ARM: {}}, "seeds": (experiment.seed,)}, experiment)


def load_experiment(path: str | Path) -> Experiment:
    """The experiment in a TOML file.

    Raises:
        SpecError: the file, or a file that it names, is missing or not valid.
    """
    file = Path(path)
    return _experiment(file, _experiment_table(file, seen=()))


def _experiment(file: Path, table: Table) -> Experiment:
    try:
        return Experiment.model_validate(table)
    except ValidationError as error:
        raise explain(error, Experiment, where=str(file)) from None


def _experiment_table(file: Path, seen: tuple[Path, ...]) -> Table:
    """The tables of an experiment file over those of the files that it extends, with paths made absolute."""
    if file.resolve() in seen:
        raise SpecError("extends itself, or its teacher is itself", where=str(file), fix="break the circle")
    seen = (*seen, file.resolve())
    table = _read(file)
    base: Table = {}
    if "extends" in table:
        parent = _beside(file, table.pop("extends"), "extends")
        base = _experiment_table(parent, seen)
        _experiment(parent, base)
    return merge(base, _located(file, table, seen))


def _ablation(file: Path, table: Table, changes: Table) -> Ablation:
    stated = table.pop("experiment", None)
    if isinstance(stated, str):
        base = load_experiment(_beside(file, stated, "experiment"))
    elif isinstance(stated, dict):
        base = _experiment(file, _located(file, stated, ()))
    else:
        fix = 'name one: experiment = "../experiments/shapes.toml"'
        raise SpecError("required key is missing", where=f"{file}: experiment", fix=fix)
    arms = table.get("arms", {})
    if isinstance(arms, dict):
        table["arms"] = {name: _located(file, arm, ()) if isinstance(arm, dict) else arm for name, arm in arms.items()}
    if isinstance(table.get("base"), dict):
        table["base"] = merge(_located(file, expand(table["base"]), ()), changes)
    elif changes:
        table["base"] = changes
    return _validated(file, table, base)


def _validated(file: Path, table: Table, base: Experiment) -> Ablation:
    try:
        return Ablation.model_validate({**table, "experiment": base})
    except ValidationError as error:
        raise explain(error, Ablation, where=str(file)) from None


def _located(file: Path, table: Table, seen: tuple[Path, ...]) -> Table:
    """An experiment's tables, complete or in part, with what they name by path put in its place."""
    located = expand(table)
    for section in ("data", "model", "teacher", "evaluation"):
        if section in located and not isinstance(located[section], dict):
            raise SpecError("is no table", where=f"{file}: {section}", fix=f"write [{section}] and its keys")
    for field in PATH_FIELDS:
        if isinstance(value := located.get("data", {}).get(field), str):
            located["data"] = {**located["data"], field: str(file.parent.resolve() / value)}
    if isinstance(config := located.get("model", {}).get("config"), str):
        located["model"] = {**located["model"], "config": _model_config(_beside(file, config, "model.config"))}
    for section in ("model", "teacher"):
        weights = located.get(section, {}).get("weights")
        if isinstance(weights, str) and _is_path(weights):
            located[section] = {**located[section], "weights": str(file.parent.resolve() / weights)}
    if isinstance(path := located.get("teacher", {}).get("path"), str):
        others = {key: value for key, value in located["teacher"].items() if key != "path"}
        nested = _experiment_table(_beside(file, path, "teacher.path"), seen)
        _experiment(_beside(file, path, "teacher.path"), nested)
        located["teacher"] = merge({"kind": "experiment", "experiment": nested}, others)
    if isinstance(sets := located.get("evaluation", {}).get("sets"), list):
        absolute = [str(file.parent.resolve() / name) if _is_path(name) else name for name in sets]
        located["evaluation"] = {**located["evaluation"], "sets": absolute}
    return located


def _is_path(name: Any) -> bool:
    return isinstance(name, str) and (name.startswith((".", "/", "~")) or "/" in name)


def _beside(file: Path, stated: Any, key: str) -> Path:
    path = file.parent / Path(str(stated)).expanduser()
    if not isinstance(stated, str) or not path.is_file():
        raise SpecError(f"there is no file {stated!r}", where=f"{file}: {key}", fix=f"looked for {path}")
    return path


def _read(file: Path) -> Table:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError("there is no such file", where=str(file), fix="shipped ones are in ablations/") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"is no valid TOML ({error})", where=str(file), fix="mend that line") from None


def _model_config(file: Path) -> Table:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"is no valid JSON ({error})", where=str(file), fix="give an open_clip model config") from None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise SpecError("has no embed_dim, vision_cfg and text_cfg", where=str(file), fix="see open_clip's model_configs")
    return config
