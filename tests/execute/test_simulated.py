"""Large sweeps over a simulated cluster: calls are counted, because a controller that serves 50 users counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.profile import Profile
from harness.execute.slurm import executor as sweep
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.scheduler import ArrayRequest
from harness.execute.slurm.submission_log import load
from harness.planning.plan import Plan
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import complete
from tests.execute.simulated import SimulatedCluster
from tests.head.made import ablation, plan_of


def swept(plan: Plan, store: Store, cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> int:
    """Carry a plan out; returns the cycles that it took."""
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    monkeypatch.setattr(sweep, "FASTEST_S", 0.0)
    profile = Profile.model_validate({"gpus_per_task": 1, "mem_gb": 8, "partitions": ["gpu"]})
    executor = SlurmExecutor(plan, store, Settings(store=store.root), profile, cluster)
    cycles = 0
    while executor.progress().done < len(plan.runs):
        executor.cycle()
        cycles += 1
        assert cycles < 500, "the sweep does not come to an end"
    return cycles


@pytest.mark.parametrize("fault_rate", [0.0, 0.1])
def test_calls_depend_on_arrays_and_cycles_and_not_on_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_rate: float
) -> None:
    store = Store(tmp_path / "store")
    plan = plan_of(ablation({"a": {}}, seeds=120))

    def carry_out(batch: ArrayRequest, task: int) -> None:
        for run in load(batch.folder).intent.tasks[task]:
            complete(plan, store, run)

    cluster = SimulatedCluster(carry_out, slots=1000, quota=30, max_array=15, fault_rate=fault_rate)
    cycles = swept(plan, store, cluster, monkeypatch)
    assert set(cluster.accepted.values()) == {1}
    assert cluster.calls["squeue"] <= cycles
    assert cluster.calls["sacct"] <= (cycles if fault_rate else 0)
    assert cluster.calls["sinfo"] + cluster.calls["sacctmgr"] <= 2
    # A quota is felt out by halving: a few refusals in each cycle, never one for each run.
    assert cluster.calls["sbatch"] <= len(cluster.accepted) + 8 * cycles
    assert cluster.calls["find"] <= cluster.calls["sbatch"] - len(cluster.accepted)
