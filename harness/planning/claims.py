"""When each claim was first planned: `harness plan` and `harness run` note it in the store.

Seeds may be added to a noted claim as long as one of its arms has no run, because nothing could have been seen of its
difference. From then on, the note stays.

    store/claims/<key>.json    the claim, the seeds it was planned with, and the Unix time

The key is of the claim, of the margin and the estimation by which it is judged, and of the science of its two arms: a
claim of which one of these changed is another one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import create_text, read_json, write_text
from harness.config.ablation import Claim
from harness.planning.plan import Plan
from harness.runs.identity import digest
from harness.runs.store import Store

FOLDER = "claims"


def note_claims(plan: Plan, store: Store) -> None:
    """Note the claims of `plan` that the store does not have yet, or has with fewer seeds and without runs of an arm.

    Raises:
        StoreError: the store cannot be written, or a file of it is damaged.
    """
    for claim in plan.ablation.claims:
        file, seeds = _file(plan, claim, store), plan.ablation.seed_list
        stated = claim.model_dump(mode="json") | {"seeds": seeds, "planned_at": time.time()}
        text = json.dumps(stated, indent=1, sort_keys=True) + "\n"
        if not file.exists():
            store.begin()
            create_text(file, text)
        elif set(_noted(file)[1] or seeds) < set(seeds) and _is_unseen(plan, claim, store):
            write_text(file, text)


def _is_unseen(plan: Plan, claim: Claim, store: Store) -> bool:
    """Whether one of the claim's arms has no run of any planned seed."""
    return any(
        not any(store.run(run).path.exists() for run in plan.ids(arm).values()) for arm in (claim.arm, claim.than)
    )


def planned_claims(plan: Plan, store: Store, began: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each claim with when it was first planned, and whether that was before the first run that it uses.

    Args:
        began: Unix time at which each finished run was started, by id.

    Returns:
        The claims' fields with `runs`, `first_run_at` (None if none has finished), `planned_at` and `seeds` (None if an
        earlier version planned them), and `planned_before_runs` (None if unknown).

    Raises:
        StoreError: a file of the store is damaged.
    """
    found = []
    for claim in plan.ablation.claims:
        planned_at, seeds = _noted(_file(plan, claim, store))
        stated = claim_runs(plan, claim, began) | {"planned_at": planned_at, "seeds": seeds}
        first = stated["first_run_at"]
        before = None if planned_at is None else first is None or planned_at <= first
        found.append(stated | {"planned_before_runs": before})
    return found


def first_seeds(plan: Plan, store: Store) -> dict[str, int]:
    """How many seeds each claim was first planned with, by its text; claims that the store has not noted are left out.

    Raises:
        StoreError: a file of the store is damaged.
    """
    found = {}
    for claim in plan.ablation.claims:
        _, seeds = _noted(_file(plan, claim, store))
        if seeds is not None:
            found[claim.text] = len(seeds)
    return found


def _noted(file: Path) -> tuple[float | None, list[int] | None]:
    """When the claim was planned, and with which seeds; None for a claim that an earlier version planned."""
    if not file.exists():
        return None, None
    match read_json(file):
        case {"planned_at": int() | float() as planned_at, "seeds": list() | None as seeds}:
            return planned_at, seeds
        case {"planned_at": int() | float() as planned_at, **others} if "seeds" not in others:
            return planned_at, None
        case _:
            fix = "restore it; without it, it is not known when the claim was planned"
            raise StoreError("is damaged", where=str(file), fix=fix)


def claim_runs(plan: Plan, claim: Claim, began: Mapping[str, float]) -> dict[str, Any]:
    """A claim's fields, the finished runs of its arms, and when the first of them was started."""
    runs = [id for arm in (claim.arm, claim.than) for id in plan.ids(arm).values() if id in began]
    return claim.model_dump(mode="json") | {
        "runs": runs,
        "first_run_at": min(map(began.__getitem__, runs), default=None),
    }


def _file(plan: Plan, claim: Claim, store: Store) -> Path:
    """The note of a claim: one of an earlier version, whose key has neither margin nor estimation, if there is one."""
    ablation, arms = plan.ablation, [_seedless(plan.experiments[name].science()) for name in (claim.arm, claim.than)]
    parts = [claim.model_dump(mode="json"), claim.metric or ablation.primary, arms]
    earlier, file = (
        store.root / FOLDER / f"{digest(key)}.json"
        for key in (parts, [*parts, ablation.margin_of(claim), ablation.estimation])
    )
    return earlier if earlier.exists() else file


def _seedless(science: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in science.items() if name != "seed"}
