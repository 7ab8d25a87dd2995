"""Verify a published ablation from its folder alone: its files, whose they are, and every number of its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.base.boundary import as_sentence
from harness.base.files import read_text
from harness.execute.bundle import REPORT, Bundle, Render, changed, differences, is_this_code, read_bundle, root_hash
from harness.execute.verify import Verification, verify_run
from harness.execute.verify_report import verify_report
from harness.planning.claims import claim_runs
from harness.planning.plan import Plan
from harness.runs.store import Store


def verify_bundle(
    folder: Path, render: Render, changed_looks: Callable[[Plan, Store], list[str]], root: str | None = None
) -> Verification:
    """Verify the bundle in `folder`.

    Args:
        render: makes the report again.
        changed_looks: takes the looks at its claims again; returns a sentence for each that differs.
        root: the root hash as it was published. Without it, a bundle that was remade completely is not detected.

    Raises:
        StoreError: it is no bundle.
    """
    found = Verification()
    found.problems += changed(folder)
    found.root = root_hash(folder)
    if root is None:
        found.unproven.append("no root hash was given: a bundle that was remade completely is not detected")
    elif root.strip().lower() != found.root:
        found.problems.append(f"the root hash is {found.root}, not the published one")
    with _going_on(folder, found):
        bundle = read_bundle(folder)
        report = partial(_report, render=render)
        for name, check in (("runs", _runs), ("claims", _claims), ("report", report)):
            with _going_on(folder, found, f" of its {name}"):
                check(bundle, found)
        with _going_on(folder, found, " of its looks"):
            found.problems += changed_looks(bundle.plan, bundle.store)
    return found


@contextmanager
def _going_on(folder: Path, found: Verification, part: str = "") -> Iterator[None]:
    """Note what cannot be checked as a problem, and go on. Anything can be in a bundle that someone changed."""
    try:
        yield
    except Exception as error:
        told = as_sentence(error) or f"{type(error).__name__}: {error}"
        found.problems.append(f"{folder}: not everything{part} could be checked ({told})")


def _runs(bundle: Bundle, found: Verification) -> None:
    plan, store, stated = bundle.plan, bundle.store, set(bundle.about.runs)
    there = {path.name for path in (store.root / "runs").iterdir()}
    found.problems += [f"run {run} is missing" for run in sorted(stated - there)]
    found.problems += [f"run {run} is in the bundle and not in its list" for run in sorted(there - stated)]
    found.problems += [f"run {run} is not part of the ablation" for run in sorted(there - plan.runs.keys())]
    for run in plan.runs.values():
        if run.id in there:
            verify_run(store.run(run.id), found, run.identity, frozenset(bundle.about.left_out))
    if missing := len(plan.runs) - len(stated):
        found.unproven.append(f"{missing} of {len(plan.runs)} runs have not finished")
    if left_out := [name for name in bundle.about.left_out if name == "weights.pt"]:
        found.unproven.append(f"{', '.join(left_out)} of the runs is not in the bundle")
    for name, original in bundle.about.replaced.items():
        found.unproven.append(f"{name} had paths that were replaced; the SHA-256 of the original is {original}")


def _claims(bundle: Bundle, found: Verification) -> None:
    began = {run: bundle.store.run(run).record().started_at for run in bundle.about.runs if run in bundle.plan.runs}
    claims = bundle.plan.ablation.claims
    if len(claims) != len(bundle.claims):
        found.problems.append(f"there are {len(bundle.claims)} dated claims and {len(claims)} claims in the ablation")
    for claim, stated in zip(claims, bundle.claims, strict=False):
        derived, planned = claim_runs(bundle.plan, claim, began), stated["planned_at"]
        first = derived["first_run_at"]
        derived["planned_before_runs"] = None if planned is None else first is None or planned <= first
        found.problems += [
            f"claim {claim.text!r}: {one}" for one in differences({name: stated.get(name) for name in derived}, derived)
        ]
        when = {True: "before", False: "AFTER", None: "at an unknown time relative to"}[derived["planned_before_runs"]]
        found.unproven.append(
            f"claim {claim.text!r} was planned {when} the first run that it uses, by its author's clock"
        )


def _report(bundle: Bundle, found: Verification, render: Render) -> None:
    folder, is_same_code = bundle.folder / REPORT, is_this_code(bundle.folder)
    if not is_same_code:
        found.unproven.append("the bundle was made by different code: texts of the report may differ")
    text = read_text(folder / "report.json")
    other = list(differences(json.loads(text), json.loads(render(bundle.plan, bundle.store, "json"))))
    for one in other:
        (found.problems if is_same_code or one.startswith("metrics") else found.unproven).append(f"report.json: {one}")
    if is_same_code and not other and read_text(folder / "report.md") != render(bundle.plan, bundle.store, "md"):
        found.problems.append("report.md does not follow from the runs")
    verify_report(text, found)
