"""What is known to go wrong on a machine, looked for in seconds and without importing anything heavy."""

from __future__ import annotations

from harness.doctor.finding import Finding, Level
from harness.doctor.machine import gpu, processor, shared_memory, slurm
from harness.doctor.places import evaluation_sets, store, tracking
from harness.doctor.software import checkout, defects, pairing, python, requirements
from harness.runs.settings import Settings

__all__ = ["Finding", "Level", "diagnose"]


def diagnose(settings: Settings) -> list[Finding]:
    """Everything that was looked at, in the order of a set-up: software, machine, places."""
    software = [python(), *requirements(), *defects(), pairing(), checkout()]
    machine = [processor(), *shared_memory(), gpu(), slurm()]
    places = [*store(settings.store), tracking(settings.tracking), *evaluation_sets(settings.evaluation_root)]
    return [*software, *machine, *places]
