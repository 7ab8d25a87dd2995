"""The results of a search: the winner as an experiment file, its confirmation, and the trials as an ablation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomlkit

from harness.base.errors import SpecError
from harness.base.files import write_text
from harness.config.ablation import Ablation
from harness.config.axes import level_name
from harness.config.overrides import Table, expand, merge
from harness.config.search import Search
from harness.searching.study import Trial

WINNER, REFERENCE = "winner", "reference"


def described(trial: Trial) -> str:
    """A configuration in one line."""
    return ", ".join(f"{path} = {shown(value)}" for path, value in trial.values.items())


def shown(value: Any) -> str:
    """Format a value for display, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else level_name(value)


def confirmation(search: Search, winner: Trial) -> Ablation:
    """An ablation of the winner and the reference, on seeds that the search has not used."""
    first = max(search.seed_list) + 1
    return Ablation.model_validate(
        {
            "question": f"Does the winner hold on fresh seeds? {search.question}",
            "experiment": search.experiment,
            "base": search.base,
            "baseline": REFERENCE,
            "arms": {REFERENCE: search.confirm.against, WINNER: expand(winner.values)},
            "seeds": tuple(range(first, first + search.confirm.seeds)),
            "primary": search.objectives[0].metric,
            "notes": f"The winner is configuration {winner.number} of the search: {described(winner)}.",
        }
    )


def as_ablation(search: Search, trials: Iterable[Trial]) -> Ablation:
    """An ablation with the search's configurations (at least one) as arms, so MLflow and `compare` can handle them."""
    arms = {f"configuration {trial.number}": expand(trial.values) for trial in trials}
    return Ablation.model_validate(
        {
            "question": search.question,
            "experiment": search.experiment,
            "base": search.base,
            "baseline": next(iter(arms)),
            "arms": arms,
            "labels": {f"configuration {trial.number}": described(trial) for trial in trials},
            "seeds": search.seed_list,
            "primary": search.objectives[0].metric,
        }
    )


def export(search: Search, winner: Trial, spec: Path, out: Path) -> None:
    """Write the winner as an experiment file.

    Raises:
        SpecError: the search's base is not in a separate file.
    """
    import tomllib

    stated = tomllib.loads(spec.read_text(encoding="utf-8"))
    base = stated.get("experiment")
    if not isinstance(base, str):
        fix = "put the experiment into a separate file and name it"
        raise SpecError("the base is written in the search itself", where=f"{spec}: experiment", fix=fix)
    parent = (spec.parent / base).resolve()
    document = tomlkit.document()
    value = winner.final[0] if winner.final else float("nan")
    seeds = f"{len(search.seed_list)} seed{'s' if len(search.seed_list) > 1 else ''}"
    document.add(tomlkit.comment(f"Configuration {winner.number} of {spec.name}: {search.question}"))
    document.add(tomlkit.comment(f"{search.objectives[0].metric} {value:.4f} in the search ({seeds})."))
    document.add("extends", tomlkit.item(_relative(parent, out.resolve().parent)))
    changes: Table = merge(expand(stated.get("base", {})), expand(winner.values))
    for key, table in changes.items():
        document.add(key, tomlkit.item(table))
    write_text(out, tomlkit.dumps(document))


def _relative(file: Path, folder: Path) -> str:
    import os

    return os.path.relpath(file, folder)
