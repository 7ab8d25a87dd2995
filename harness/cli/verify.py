"""`harness publish` and `harness verify`: what was proved of runs and their report, what is wrong, what is open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import api

MOST = 20


def publish(spec: Path, folder: Path, assignments: Sequence[str], *, weights: bool, images: bool) -> None:
    """Write the bundle and print what is in it."""
    made = api.publish(spec, folder, assignments, weights=weights, images=images)
    print(f"{made.folder}: {made.files} files, {made.runs} of {made.planned} runs")
    for when, count in made.claims.items():
        print(f"{count} claims were planned {_WHEN[when]}")
    if made.replaced:
        print(f"{made.replaced} paths were replaced")
    print(f"root hash {made.root}")


_WHEN = {
    "before": "before the first run that they use",
    "after": "AFTER the first run that they use",
    "unknown": "at an unknown time: neither `plan` nor `run` of this version saw them",
}


def verify(spec: str, assignments: Sequence[str], retrain: int, root: str | None = None) -> bool:
    """Print what was checked; returns whether nothing is wrong."""
    found = api.verify(spec, assignments, retrain=retrain, root=root)
    if found.root:
        print(f"root hash {found.root}")
    print(f"{found.runs} finished runs; {found.files} files are as they were sealed")
    print(f"{found.metrics} metrics and {found.report} numbers of the report were derived again and agree")
    if retrain:
        print(f"{found.retrained} of {retrain} runs were trained again and have the same bits")
    _listed("could not be checked", found.unproven)
    _listed("WRONG", found.problems)
    return bool(found)


def _listed(head: str, sentences: Sequence[str]) -> None:
    for sentence in sentences[:MOST]:
        print(f"{head}: {sentence}")
    if len(sentences) > MOST:
        print(f"{head}: {len(sentences) - MOST} more")
