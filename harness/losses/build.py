"""From a loss spec to the module that computes it."""

from __future__ import annotations

from harness.config import loss as specs
from harness.losses.base import Objective
from harness.losses.chunks import ChunkPass
from harness.losses.gated import ALIPObjective
from harness.losses.geometry import AlignUniformObjective, CLOOBObjective, CyCLIPObjective
from harness.losses.sigmoid import MultiPositiveSigmoidObjective, SigmoidObjective
from harness.losses.softmax import FNCObjective, InfoNCEObjective, MACLObjective, MAFAObjective, MultiPositiveObjective
from harness.losses.teacher import CWCLObjective, OTTERObjective, SoftTeacherObjective
from harness.losses.tokens import DreamLIPObjective, FILIPObjective
from harness.parallel.ranks import Ranks

__all__ = ["build_objective"]


def build_objective(spec: specs.Loss, ranks: Ranks | None = None, chunk: int | None = None) -> Objective:
    """The objective that `spec` describes.

    Args:
        spec: one of the losses.
        ranks: the processes that share a batch; a single one if left out.
        chunk: captions per strip of scores; by a memory budget if left out. It never changes the result.
    """
    return _build(spec, ChunkPass(ranks or Ranks(), chunk))


def _build(spec: specs.Loss, sweep: ChunkPass) -> Objective:
    match spec:
        case specs.InfoNCE():
            return InfoNCEObjective(spec, sweep)
        case specs.Sigmoid():
            return SigmoidObjective(spec, sweep)
        case specs.MultiPositiveSigmoid():
            return MultiPositiveSigmoidObjective(spec, sweep)
        case specs.SupConOut() | specs.SupConIn() | specs.SoftTargetInfoNCE():
            return MultiPositiveObjective(spec, sweep)
        case specs.MAFA():
            return MAFAObjective(spec, sweep)
        case specs.ALIP():
            return ALIPObjective(spec, sweep)
        case specs.CWCL():
            return CWCLObjective(spec, sweep)
        case specs.CyCLIP():
            return CyCLIPObjective(spec, sweep)
        case specs.CLOOB():
            return CLOOBObjective(spec, sweep)
        case specs.AlignUniform():
            return AlignUniformObjective(spec, sweep)
        case specs.SoftTeacher():
            return SoftTeacherObjective(spec, sweep)
        case specs.OTTER():
            return OTTERObjective(spec, sweep)
        case specs.MACL():
            return MACLObjective(spec, sweep)
        case specs.FNC():
            return FNCObjective(spec, sweep)
        case specs.FILIP():
            return FILIPObjective(spec, sweep)
        case specs.DreamLIP():
            return DreamLIPObjective(spec, sweep)
