"""5,000 mutations of shipped specs: each loads and plans, or is refused in one sentence, within seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import api
from harness.base.errors import HarnessError
from harness.config.load import is_search
from harness.config.profile import load_profile
from tests.fuzz.campaign import Campaign
from tests.fuzz.specs import ROOT, SHIPPED, mutated

pytestmark = pytest.mark.fuzz
CAMPAIGN = Campaign("specs", cases=5000, few=40, share=0.3)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped specs in a project of their own."""
    root = tmp_path_factory.mktemp("specs")
    for name in ("ablations", "experiments", "slurm"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("testcluster"))
    (root / "harness.toml").write_text('store = "store"\ntracking_uri = "none"\n')
    return root


def refused_or_planned(file: Path) -> None:
    """Do what `check` and `plan` do with the file."""
    try:
        if file.parent.name == "slurm":
            load_profile(file)
        elif is_search(file):
            api.load(file)
        else:
            api.plan(file, provisional=True)
    except HarnessError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 2100
        assert "Traceback" not in text
        assert "pydantic" not in text


def test_a_mutated_spec_is_planned_or_refused(project: Path) -> None:
    for number, draw in CAMPAIGN.draws():
        source = draw.choice(SHIPPED)
        file = project / source.relative_to(ROOT).with_name(f"fuzzed-{number}.toml")
        file.write_bytes(mutated(source.read_text(), draw))
        with CAMPAIGN.case(number, source.name):
            refused_or_planned(file)
        file.unlink()
