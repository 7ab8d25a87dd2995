"""A profile may ask for all that the largest node has, and for nothing more."""

from __future__ import annotations

import pytest

from harness.config.profile import JobResources
from harness.execute.slurm.cluster_limits import _lacks
from harness.execute.slurm.scheduler import Partition

LARGEST = Partition("gpu", nodes=4, cpus=16, mem_gb=128, gpus=8, time_limit_min=120)
ALL = {"nodes": 4, "tasks_per_node": 8, "gpus_per_task": 1, "cpus_per_task": 2, "mem_gb": 128, "time_limit_min": 120}


def test_all_of_a_node_is_not_too_much() -> None:
    assert _lacks(JobResources.model_validate(ALL), LARGEST) is None


@pytest.mark.parametrize(
    ("key", "amount"), [("nodes", 5), ("mem_gb", 129), ("time_limit_min", 121), ("cpus_per_task", 3)]
)
def test_a_little_more_is(key: str, amount: int) -> None:
    found = _lacks(JobResources.model_validate({**ALL, key: amount}), LARGEST)
    assert found is not None
    assert found[0] == key
