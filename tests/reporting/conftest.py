from __future__ import annotations

import pytest

from harness.planning.plan import Plan
from harness.reporting import Results, collect
from harness.runs.store import Store
from tests.reporting.made import quickstart


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """The embedded ablation with every run done; not to be changed."""
    return quickstart(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def results(finished: tuple[Plan, Store]) -> Results:
    return collect(*finished)
