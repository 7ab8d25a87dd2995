"""Check the parts in a user's Python file: `harness part check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.base.errors import SpecError
from harness.base.part_checks import PartFinding
from harness.base.part_files import PartFiles
from harness.config.base import Spec
from harness.config.evaluation import PythonMetric
from harness.config.experiment import Experiment
from harness.config.explain import explain
from harness.config.overrides import expand, parse_assignment
from harness.evaluation.conformance import check_metric_part
from harness.losses.conformance import check_loss_part
from harness.mining.conformance import check_mining_part
from harness.node.describe_part import found_in

PARTS: dict[str, Callable[[Any], Iterator[PartFinding]]] = {
    "loss": check_loss_part,
    "mining": check_mining_part,
    "metric": check_metric_part,
}
"""The checks of each sort of part."""


class CheckedPart(NamedTuple):
    """A part and what its checks found."""

    part: str
    name: str
    findings: Iterator[PartFinding]
    """Made as they are drawn."""


def check_file(file: Path, name: str | None = None, assignments: Sequence[str] = ()) -> Iterator[CheckedPart]:
    """Check every part in `file`, or the class `name` alone, with its default parameters.

    Args:
        assignments: parameters to set, like `"margin=0.1"`.

    Raises:
        SpecError: the file cannot be imported or has no part, or a parameter is not valid.
    """
    module = PartFiles.read(file).load()
    found = [(part, one.__name__) for part in PARTS for one in found_in(module, part) if name in (None, one.__name__)]
    if not found:
        what = f"has no part {name!r}" if name else "has no part"
        raise SpecError(what, where=str(file), fix="`harness part new` writes one to start from")
    parameters = expand(dict(map(parse_assignment, assignments)))
    for part, one in found:
        stated = {"kind": "python", "file": str(file), "name": one, **parameters}
        try:
            if part == "metric":
                spec: Spec = PythonMetric.model_validate(stated)
            else:
                spec = getattr(Experiment.model_validate({**_OTHERS, part: stated}), part)
        except ValidationError as error:
            raise explain(error, PythonMetric if part == "metric" else Experiment, where=str(file)) from None
        yield CheckedPart(part, one, PARTS[part](spec))


_OTHERS = {
    "teacher": {"kind": "open_clip", "model": "ViT-B-32", "weights": "openai"},
    "model": {"name": "tiny-vit"},
    "loss": {"kind": "supcon_out"},
}
"""A teacher, tokens, and a loss with a place for mined positives, which a part may need; nothing is built of them."""
