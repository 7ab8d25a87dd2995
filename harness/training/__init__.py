"""Training: one optimiser step over the global batch, however it is split, and the loop around it."""

from harness.training.optimiser import build_optimiser
from harness.training.schedule import Schedule
from harness.training.trainer import Step, Student, Trainer, build_student

__all__ = ["Schedule", "Step", "Student", "Trainer", "build_optimiser", "build_student"]
