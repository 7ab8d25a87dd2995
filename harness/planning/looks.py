"""Looks at the claims of an ablation whose seeds are added on demand (`[seeds] until = "decided"`).

    store/looks/<key>/<number>.json    what a look found, the runs that it saw, and which arms get more seeds

A plan has the seeds that the looks so far ask for, so all commands see the same runs. The key is of the claims, their
rules and the first runs: an ablation that changes, or whose data changes, begins again at its first look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.base.errors import StoreError
from harness.base.files import create_text, read_json
from harness.config.ablation import Ablation
from harness.runs.identity import digest
from harness.runs.store import Store

FOLDER = "looks"
LookWord = Literal["better", "worse", "equal", "open", "given up", "not judged"]
"""`given up`: the remaining seeds would hardly decide it. `not judged`: no number of seeds could, see the report."""


class LookedClaim(BaseModel):
    """What a look says of a claim. What an earlier look decided stays as that look found it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    text: str
    word: LookWord
    look: int
    """Number of the look that this is from."""
    mean: float | None = None
    """The difference, arm less the one that it should be better than."""
    error: float | None = None
    """Its standard error."""
    p: float | None = None
    """Of no difference."""
    equality_p: float | None = None
    """Of a difference beyond the margin."""


class InterimLook(BaseModel):
    """A look at all claims, after a round of seeds."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    number: int
    """From 1."""
    seeds: int
    """Seeds of the arms that were still open."""
    claims: tuple[LookedClaim, ...]
    more: Mapping[str, int] = {}
    """Arms that get more seeds, with their new number. Empty: this was the last look."""
    runs: Mapping[str, str]
    """The runs that it saw: their ids by `arm/seed`."""
    hours: float
    """Device-hours of these runs."""
    taken_at: float
    """Unix time."""

    @property
    def is_last(self) -> bool:
        """Whether no claim is open any more."""
        return not self.more


def looks_key(ablation: Ablation, first: Sequence[str]) -> str:
    """The folder of an ablation's looks.

    Args:
        first: ids of the runs that the first look needs.
    """
    rules = ablation.model_dump(mode="json", include={"claims", "seeds", "primary", "margin", "estimation", "baseline"})
    return digest([rules, list(first)])


def read_looks(store: Store, key: str) -> tuple[InterimLook, ...]:
    """The looks so far, in order.

    Raises:
        StoreError: a look is damaged or missing.
    """
    below = (store.root / FOLDER / key).glob("*.json")
    files = {int(file.stem): file for file in below if file.stem.isdecimal()}
    found = []
    for number in range(1, max(files, default=0) + 1):
        file = files.get(number, store.root / FOLDER / key / f"{number}.json")
        fix = f"restore it, or delete {file.parent} to take all looks again"
        try:
            look = InterimLook.model_validate(read_json(file))
        except ValidationError as error:
            raise StoreError("is not a look at claims", where=str(file), fix=fix) from error
        if look.number != number:
            raise StoreError(f"is look {look.number}", where=str(file), fix=fix)
        found.append(look)
    return tuple(found)


def note_look(store: Store, key: str, look: InterimLook) -> InterimLook:
    """Write a look, for good; returns it, or the one that another process wrote first.

    Raises:
        StoreError: the store cannot be written.
    """
    store.begin()
    file = store.root / FOLDER / key / f"{look.number}.json"
    if create_text(file, json.dumps(look.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"):
        return look
    return InterimLook.model_validate(read_json(file))
