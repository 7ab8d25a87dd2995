"""Loss curves of seeded runs, kept in golden/curves.json.

Bits differ between processors, as their libraries add in another order; so the curves are computed in float64 and
compared to nine digits, far below anything a change of an algorithm could do. On one machine the same run is repeated
bit for bit (tests/node/test_resume.py). `python -m tests.training.test_golden` writes the file anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.node.small import CONFIG
from tests.training.made import FFF, VIT_MODEL, attempt, experiment, taken, train

FILE = Path(__file__).parent / "golden" / "curves.json"
STEPS = 6
RUNS: dict[str, dict[str, Any]] = {
    "clip": {"model": VIT_MODEL, "train": train(STEPS, warmup="2 steps")},
    "fff": {
        "model": {"name": "resnet", "config": CONFIG},
        "train": train(STEPS, augment={"kind": "fff"}, grad_clip=1.0),
        "captions": FFF["captions"],
        "loss": FFF["loss"],
    },
}


def curve(root: Path, name: str) -> dict[str, list[float]]:
    _, trainer, student = attempt(root, experiment(**RUNS[name]))
    logs = taken(trainer, student, STEPS)
    return {key: [line[key] for line in logs] for key in ("loss", "grad_norm", "logit_scale", "positives_per_image")}


@pytest.mark.parametrize("name", RUNS)
def test_a_seeded_run_has_the_curve_that_it_always_had(name: str, tmp_path: Path) -> None:
    expected = json.loads(FILE.read_text())[name]
    found = curve(tmp_path, name)
    assert found.keys() == expected.keys()
    for key, values in found.items():
        assert values == pytest.approx(expected[key], rel=1e-9), key


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: curve(Path(folder), name) for name in RUNS}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
