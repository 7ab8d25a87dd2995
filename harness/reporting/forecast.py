"""What the seeds of a plan can tell, from the noise of finished arms in its store."""

from __future__ import annotations

from harness.planning.estimate import Finished
from harness.planning.plan import Plan
from harness.statistics.forecast import Forecast, forecast

__all__ = ["Forecast", "can_tell"]


def can_tell(plan: Plan, finished: Finished) -> Forecast | None:
    """The smallest difference in the primary metric that the planned seeds can tell (`harness.statistics.forecast`).

    Args:
        finished: arms with the same metric and as many steps (`harness.planning.estimate.finished_arms`).
    """
    ablation = plan.ablation
    seeds, claims = len(plan.ids(ablation.baseline)), len(ablation.claims) or len(plan.arms) - 1
    return forecast(finished, seeds, len(plan.arms), claims, ablation.estimation)
