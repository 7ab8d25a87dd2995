"""`harness runs` and `harness prune`: what a store holds, and what nothing in it refers to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

store_app = typer.Typer()


@store_app.command()
def runs() -> None:
    """List every ablation and search of the store: question, runs, verdicts, cost."""
    from harness import api
    from harness.base.errors import HarnessError
    from harness.cli.output import plural, seconds, table
    from harness.reporting import Document, collect
    from harness.runs.noted import noted

    store = api.project().store
    counted = Counter(state.value for state in store.states(folder.id for folder in store.runs()).values())
    states = ", ".join(f"{number} {state}" for state, number in sorted(counted.items())) or "none yet"
    rows = []
    for one in noted(store):
        question, verdicts, done, spent = one.question, "", "", 0.0
        try:
            planned = api.plan(one.file, one.assignments, provisional=True) if one.file else None
            if planned is not None:
                results = collect(planned, store)
                records = [run.record for run in results.runs if run.record]
                done = f"{len(records)} of {len(results.runs)}"
                spent = sum(record.cost.duration_s for record in records)
                verdicts = "; ".join(f"{claim.claim.text}: {claim.word}" for claim in Document(results).verdicts)
        except HarnessError as error:
            verdicts = f"not known: {error.what}"
        rows.append([one.name, question, verdicts, done, seconds(spent) if spent else ""])
    table(f"{store.root}: {plural(sum(counted.values()), 'run')} ({states})", HEADER, rows, ["training"])


HEADER = ["ablation", "question", "verdicts", "done", "training"]


@store_app.command()
def prune(
    keep: Annotated[
        list[Path] | None, typer.Argument(metavar="[SPEC...]", help="Keep the runs of these, too.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
) -> None:
    """List runs that no ablation or search of the store refers to; delete them with --yes.

    A run is kept if a spec that was run with this store, or a given spec, contains it in its present form.
    """
    from harness import api
    from harness.cli.output import plural, table

    store = api.project().store
    kept = _referred(keep or [])
    found = [folder for folder in store.runs() if folder.id not in kept and not folder.is_locked()]
    rows = [[folder.id, folder.state().value, _size(folder.path)] for folder in found]
    if not rows:
        print(f"{store.root}: every run belongs to an ablation or a search")
        return
    table(f"{store.root}: {plural(len(rows), 'run')} to which nothing refers", ["run", "state", "size"], rows)
    if not yes:
        print("nothing was deleted; `harness prune --yes` deletes them")
        return
    for folder in found:
        folder.delete()
    print(f"deleted {plural(len(found), 'run')}")


def _referred(keep: Sequence[Path]) -> set[str]:
    """The runs of all carried out ablations whose specs exist, and of `keep`, as the specs are now."""
    from harness import api
    from harness.base.errors import HarnessError, StoreError
    from harness.runs.noted import noted

    found: set[str] = set()
    for spec in keep:
        found |= set(api.plan(spec, provisional=True).runs)
    for one in noted(api.project().store):
        if one.file is None:
            found |= set(one.runs)
        elif one.file.exists():
            try:
                found |= set(api.plan(one.file, one.assignments, provisional=True).runs)
            except StoreError:
                found |= set(one.runs)  # a search that has begun nothing
            except HarnessError as error:
                found |= set(one.runs)
                print(f"warning: {error}; its runs are kept as they were last run", file=sys.stderr)
    return found


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e6:,.1f} MB"
