"""Every objective of the literature that the harness compares, exact, lean and interchangeable."""

from harness.config.loss import LossSpec
from harness.losses.base import Logs, Objective, PairBatch, Positives, gather_pairs
from harness.losses.build import build_objective
from harness.losses.chunks import ChunkPass
from harness.parallel.ranks import Ranks

__all__ = [
    "ChunkPass",
    "Logs",
    "LossSpec",
    "Objective",
    "PairBatch",
    "Positives",
    "Ranks",
    "build_objective",
    "gather_pairs",
]
