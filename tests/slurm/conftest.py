"""Tests in here need a real SLURM and are never skipped: `make test-slurm` brings the test cluster up for them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, control


@pytest.fixture(scope="session")
def _cluster() -> Cluster:
    found = os.environ.get("SLURM_CONF", "")
    if not Path(found).is_file():
        pytest.fail("no test cluster is up: start these tests with `make test-slurm`")
    return Cluster(Path(found).parent)


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """The test cluster, idle; put in order again after the test."""
    _cluster.tidy()
    yield _cluster
    _cluster.tidy()


@pytest.fixture(scope="session")
def _without_accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    root = tmp_path_factory.mktemp("no-accounting")
    control(root, "up", "--no-accounting", "--set", "MaxArraySize=21")
    yield Cluster(root)
    control(root, "down")


@pytest.fixture
def without_accounting(_without_accounting: Cluster) -> Iterator[Cluster]:
    """A second cluster that keeps no accounts, forgets ended jobs after seconds, and takes arrays of 20 at most."""
    _without_accounting.tidy()
    yield _without_accounting
    _without_accounting.tidy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A skipped test here would be a claim about clusters that nobody checked."""
    report = yield
    if report.skipped:
        report.outcome, report.longrepr = "failed", f"skipped, which tests of the cluster may not be: {report.longrepr}"
    return report
