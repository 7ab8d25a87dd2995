"""Take the looks at an ablation's claims, and take them again to check them."""

from __future__ import annotations

import time
from dataclasses import replace

from harness.planning.looks import InterimLook, note_look
from harness.planning.plan import Plan
from harness.reporting.collect.results import collect
from harness.reporting.sections.answer import take_look
from harness.reporting.sections.document import Document
from harness.runs.store import Store


def next_look(plan: Plan, store: Store) -> InterimLook | None:
    """Look at the claims after a round of seeds, and note it; None if no claim is open. All runs must be done.

    Raises:
        StoreError: the store cannot be written.
    """
    if plan.looks and plan.looks[-1].is_last:
        return None
    return note_look(store, plan.looks_key, _look(plan, store, time.time()))


def changed_looks(plan: Plan, store: Store) -> list[str]:
    """The looks that the records do not give when they are taken again, a sentence each."""
    found = []
    for place, noted in enumerate(plan.looks):
        cells = {cell: run for cell, run in plan.cells.items() if "/".join(map(str, cell)) in noted.runs}
        again = _look(replace(plan, cells=cells, looks=plan.looks[:place]), store, noted.taken_at)
        if again != noted:
            found.append(f"look {noted.number} is not what its runs give")
    return found


def _look(plan: Plan, store: Store, taken_at: float) -> InterimLook:
    results = collect(plan, store)
    return take_look(results, Document(results).column, taken_at)
