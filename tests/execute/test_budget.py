"""GPU-hours: what was used, what jobs are promised, and that no more is promised than there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.cli.run import confirmed
from harness.config.profile import Profile
from harness.execute import run as engine
from harness.execute.slurm import executor as sweep
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.gpu_hours import GpuHourBudget, used
from harness.execute.slurm.submission_log import SubmissionLog
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.record import AttemptStart
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.execute.made import MadeScheduler, complete
from tests.head.made import ablation, plan_of

PLAN = plan_of(ablation({"a": {}}, seeds=10))
RUNS = list(PLAN.runs)
PROFILE = Profile.model_validate({"gpus_per_task": 2, "time_limit_min": 60})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(sweep, "snapshot", lambda root: root / "copy")
    return Store(tmp_path / "store")


def held(folder: RunFolder, hours: float, gpus: float = 2.0, *, ended: bool = True) -> None:
    """An attempt that held GPUs for so long."""
    number = folder.attempts.begin(job="1_0")
    start = AttemptStart(number=number, job="1_0", started_at=1e9, gpus=gpus, cores=8)
    (folder.path / "attempts" / f"{number}.json").write_text(start.model_dump_json())
    if ended:
        folder.attempts.end(number, "preempted", "", ended_at=1e9 + hours * 3600)
    else:
        folder.progress.write_text(f'{{"attempt": {number}, "time": {1e9 + hours * 3600}}}')


def budget(hours: float, store: Store, **predicted: float) -> GpuHourBudget:
    return GpuHourBudget(hours, PLAN, store, predicted)


def submitted(store: Store, slurm: MadeScheduler, hours: float, plan: Plan = PLAN) -> SlurmExecutor:
    one = SlurmExecutor(plan, store, Settings(store=store.root), PROFILE, slurm, GpuHourBudget(hours, plan, store, {}))
    one.cycle()
    return one


def test_hours_add_up_over_attempts(store: Store) -> None:
    folder = store.run(RUNS[0])
    held(folder, 1.5)
    held(folder, 0.5, gpus=0.25)
    held(folder, 0.25, ended=False)
    assert used(folder).gpu_hours == pytest.approx(3.0 + 0.125 + 0.5)
    assert used(folder).core_hours == pytest.approx(8 * 2.25)
    assert budget(1, store).used() == pytest.approx(3.625)
    assert used(store.run(RUNS[1])).gpu_hours == 0


def test_a_job_is_promised_what_it_is_predicted_to_take_or_its_time_limit(store: Store) -> None:
    task = [PLAN.runs[run] for run in RUNS[:2]]
    assert budget(9, store).allowance(task, PROFILE) == 2.0
    assert budget(9, store, **{RUNS[0]: 0.1}).allowance(task, PROFILE) == 2.0
    assert budget(9, store, **{RUNS[0]: 0.1, RUNS[1]: 0.2}).allowance(task, PROFILE) == pytest.approx(1.5 * 2 * 0.3)


def test_no_more_is_promised_than_there_is(store: Store) -> None:
    slurm = MadeScheduler()
    one = submitted(store, slurm, 7.0)
    assert len(slurm.jobs) == 3, "2 GPU-hours each"
    assert "7 jobs are held back by the budget" in one.progress().notes
    assert SubmissionLog(store).open()[0].intent.allowance_gpu_hours == 2.0
    one.cycle()
    assert len(slurm.jobs) == 3
    for task in range(3):  # they took a quarter of what they were promised
        run = slurm.runs_of(f"1_{task}")[0]
        held(store.run(run), 0.25)
        complete(PLAN, store, run)
        slurm.end(f"1_{task}", "COMPLETED")
    one.cycle()
    assert sum(batch.tasks for batch in slurm.batches.values()) == 3 + 2, "1.5 used, so 5.5 are left"


def agreed(
    store: Store,
    hours: float,
    *,
    confirm: engine.Confirm | None = None,
    profile: Profile = PROFILE,
    predicted: Mapping[str, float] | None = None,
) -> None:
    engine._agree(budget(hours, store, **(predicted or {})), profile, PLAN, store, confirm)


def test_what_does_not_fit_is_agreed_upon_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed(store, 20.0)
    with pytest.raises(SpecError) as caught:
        agreed(store, 19.0)
    expected = (
        "--max-gpu-hours: 10 runs may take 20 GPU-hours beside the 0 used; the budget is 19; give more, or --yes "
    )
    assert str(caught.value).startswith(expected)
    agreed(store, 4.0, predicted=dict.fromkeys(RUNS, 0.1))
    questions: list[str] = []
    agreed(store, 19.0, confirm=lambda question: not questions.append(question))  # type: ignore[func-returns-value]
    assert questions[0].endswith("the budget is 19. Submit as much of it as fits?")
    with pytest.raises(SpecError):
        agreed(store, 19.0, confirm=lambda _question: False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert not confirmed("anybody there?")


def test_a_budget_of_gpus_needs_gpus(store: Store) -> None:
    with pytest.raises(SpecError, match="the profile requests no GPUs, so they cannot be counted"):
        agreed(store, 5.0, profile=Profile())
