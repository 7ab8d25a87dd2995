"""A user's Python file as tests write it, and its description without a process for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import SpecError
from harness.base.part_files import PartFiles
from harness.base.version import PACKAGE
from harness.config import parts

LOSS = (PACKAGE / "losses" / "template.py").read_text()
MINER = (PACKAGE / "mining" / "template.py").read_text()
METRIC = (PACKAGE / "evaluation" / "template.py").read_text()
STATED: dict[str, Any] = {"kind": "python", "file": "my_loss.py", "name": "MarginLoss"}
HELPED = LOSS.replace("class MarginLoss", "from helpers import FACTOR\n\n\nclass MarginLoss").replace(
    "self.margin + cosines", "self.margin * FACTOR + cosines"
)
"""With a module beside it."""


def written(folder: Path, loss: str = LOSS, **beside: str) -> dict[str, Any]:
    """Write my_loss.py and modules beside it; returns the table that names the loss."""
    for name, text in {"my_loss": loss, **beside}.items():
        (folder / f"{name}.py").write_text(text)
    return {**STATED, "file": str(folder / "my_loss.py")}


def ask_here(files: PartFiles, part: str, name: str) -> Mapping[str, Any]:
    """What the process of its own would answer, from this process."""
    from harness.node.describe_part import describe

    try:
        return describe(part, files.file, name)
    except SpecError as error:
        if error.where != "name":
            error.where = files.file.name
        raise


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_ask", ask_here)
