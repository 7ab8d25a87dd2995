"""What a report says of mining and its placebo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.reporting import collect, render
from harness.reporting.sections.controls import Control, controls
from harness.reporting.sections.document import Document
from tests.reporting.made import SIGMOID, TEACHER, simple

MINED = {**SIGMOID, "mining.kind": "threshold", "mining.image_text": 0.75, "teacher": TEACHER}
PLACEBO = {**SIGMOID, "mining": {"kind": "placebo", "of": "mined"}, "teacher": TEACHER}
ARMS: dict[str, Any] = {"clip": {}, "raw": SIGMOID, "mined": MINED, "placebo": PLACEBO}
VALUES = {
    "clip": [0.19, 0.21, 0.2],
    "raw": [0.22, 0.24, 0.23],
    "mined": [0.48, 0.5, 0.49],
    "placebo": [0.25, 0.26, 0.24],
}


def test_effect_placebo_and_their_difference(tmp_path: Path) -> None:
    results = collect(*simple(tmp_path, VALUES, arms=ARMS))
    assert controls(results) == [Control("mined", "placebo", "raw")]  # CLIP's loss differs as well
    text = render(results, "md")
    (row,) = [
        line
        for line in text.partition("Controls: shapes/acc1")[2].partition("\n## ")[0].splitlines()
        if line.startswith("| mined")
    ]
    means = {arm: 100 * np.mean(values) for arm, values in VALUES.items()}
    for one, other in (("mined", "raw"), ("placebo", "raw"), ("mined", "placebo")):
        assert f"+{means[one] - means[other]:.1f} [" in row.replace("\\", "")


@pytest.mark.parametrize("gone", ["raw", "placebo"])
def test_without_a_match_there_is_no_table(tmp_path: Path, gone: str) -> None:
    arms = {arm: changes for arm, changes in ARMS.items() if arm != gone}
    values = {arm: numbers for arm, numbers in VALUES.items() if arm != gone}
    results = collect(*simple(tmp_path, values, arms=arms))
    assert controls(results) == []
    assert "Controls" not in render(results, "md")


def test_a_claim_against_the_placebo_is_about_mining(tmp_path: Path) -> None:
    claims = [{"text": "which positives matters", "arm": "mined", "than": "placebo", "factor": "mining"}]
    results = collect(*simple(tmp_path, VALUES, arms=ARMS, claims=claims))
    (verdict,) = Document(results).verdicts
    assert (verdict.word, verdict.isolation.fields) == ("better", ("mining.kind",))
    (exported,) = json.loads(render(results, "json"))["controls"]
    assert (exported["mined"], exported["placebo"], exported["without"]) == ("mined", "placebo", "raw")
    assert exported["effect"]["mean"] == pytest.approx(0.26)
    assert exported["placebos_effect"]["mean"] == pytest.approx(0.02)
    assert exported["difference"]["mean"] == pytest.approx(0.24)
