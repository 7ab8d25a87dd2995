"""`harness verify`: what was proved of finished runs and their report, what is wrong, and what could not be checked."""

from __future__ import annotations

from collections.abc import Sequence

from harness import api

MOST = 20


def verify(spec: str, assignments: Sequence[str], retrain: int) -> bool:
    """Print what was checked; returns whether nothing is wrong."""
    found = api.verify(spec, assignments, retrain=retrain)
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
