"""What the seeds of a plan can tell, from the noise of finished arms in its store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from harness.base.errors import StoreError
from harness.planning.plan import Plan
from harness.runs.metrics import metric_id
from harness.runs.noted import NotedAblation, noted
from harness.runs.store import Store
from harness.statistics.forecast import Forecast, forecast

ENOUGH_ARMS = 24
"""Number of finished arms whose noise is read."""


def can_tell(plan: Plan, store: Store) -> Forecast | None:
    """The smallest difference in the primary metric that the planned seeds can tell (`harness.statistics.forecast`).

    From finished arms with the same metric, and as many steps as the plan's; None if there are none with several seeds.
    """
    ablation = plan.ablation
    found: list[Mapping[str, Mapping[int, float]]] = []
    for one in noted(store):
        if sum(map(len, found)) < ENOUGH_ARMS and (table := _values(one, plan, store)):
            found.append(table)
    seeds, claims = len(plan.ids(ablation.baseline)), len(ablation.claims) or len(plan.arms) - 1
    return forecast(found, seeds, len(plan.arms), claims, ablation.estimation) if found else None


def _values(noted: NotedAblation, plan: Plan, store: Store) -> dict[str, dict[int, float]]:
    """The primary metric's value by arm and seed, for arms with several seeds of one identity of the metric."""
    steps = {plan.runs[run].steps for run in plan.cells.values()}
    of, _, metric = plan.ablation.primary.partition("/")
    values: dict[str, dict[int, float]] = {}
    identities = set()
    for cell, run in noted.cells.items():
        arm, _, seed = cell.rpartition("/")
        if (arm not in values and len(values) >= ENOUGH_ARMS) or not store.run(run).record_file.exists():
            continue
        with suppress(StoreError):  # skip damaged runs: this is only an estimate
            record = store.run(run).record()
            ours = [one for one in record.evaluations if one.set == of and metric in one.metrics]
            if record.steps in steps and ours:
                values.setdefault(arm, {})[int(seed)] = ours[-1].metrics[metric].value
                identities.add(metric_id(ours[-1], metric))
    several = {arm: seeds for arm, seeds in values.items() if len(seeds) > 1}
    return several if len(several) > 1 and len(identities) == 1 else {}
