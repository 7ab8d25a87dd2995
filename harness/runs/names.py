"""What specs are called in a store, where two files may have one name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.base.errors import StoreError
from harness.base.files import read_json, write_json
from harness.base.log import say
from harness.base.sums import make_room
from harness.runs.store import Store

_NAMES = "experiments.json"
"""In the store: the spec's file of each name."""


def own_name(name: str, file: Path | None, store: Store) -> str:
    """What a spec's MLflow experiment and its reports are called: `name`, unless another file in this store has it.

    A file that is no longer there has none: specs are moved.
    """
    taken = _taken(store)
    if file is None:
        return name
    ours = str(file.resolve())
    others = {one for one, spec in taken.items() if spec != ours and Path(str(spec)).is_file()}
    names = (f"{name} ({file.resolve().parent.name}{number})" for number in ("", *(f" {n}" for n in range(2, 1000))))
    mine = next((one for one, spec in taken.items() if spec == ours and one.startswith(name)), None)
    return mine or next(one for one in (name, *names) if one not in others)


def claim_name(own: str, file: Path | None, store: Store) -> None:
    """Keep the name `own` for the spec in `file`."""
    taken = _taken(store)
    if file is not None and taken.get(own) != str(file.resolve()):
        make_room(store.root / _NAMES)
        write_json(store.root / _NAMES, {**taken, own: str(file.resolve())})


def _taken(store: Store) -> Mapping[str, Any]:
    """The file of each name. Names are given again if experiments.json is damaged."""
    file = store.root / _NAMES
    if not os.path.lexists(file):
        return {}
    with suppress(StoreError):
        content = read_json(file)
        if isinstance(content, dict) and all(isinstance(spec, str) for spec in content.values()):
            return content
    say(f"{file} is damaged: specs are named again")
    return {}
