"""Mining of positives with a frozen teacher (FFF Eq. 1), its thresholds, its figures, and grouped batches."""

from harness.config.mining import TeacherMining
from harness.mining.build import Calibration, MiningRule, PairRule, build_rule
from harness.mining.grouping import grouped_order
from harness.mining.positives import CLAUSES, GROUND_TRUTH, IMAGE_IMAGE, IMAGE_TEXT, TEXT_TEXT, Mined, mine
from harness.mining.score import Truth, score
from harness.mining.thresholds import Thresholds, calibration_images, resolve_thresholds
from harness.mining.truth import TruthRule

__all__ = [
    "CLAUSES",
    "GROUND_TRUTH",
    "IMAGE_IMAGE",
    "IMAGE_TEXT",
    "TEXT_TEXT",
    "Calibration",
    "Mined",
    "MiningRule",
    "PairRule",
    "TeacherMining",
    "Thresholds",
    "Truth",
    "TruthRule",
    "build_rule",
    "calibration_images",
    "grouped_order",
    "mine",
    "resolve_thresholds",
    "score",
]
