"""Checks a machine for known problems within seconds, without heavy imports."""

from __future__ import annotations

from harness.doctor.finding import Finding, Level
from harness.doctor.machine import gpu, processor, shared_memory, slurm
from harness.doctor.places import evaluation_sets, store, tracking
from harness.doctor.software import checkout, defects, pairing, python, requirements
from harness.runs.settings import Settings

__all__ = ["Finding", "Level", "diagnose"]


def diagnose(settings: Settings) -> list[Finding]:
    """All findings, in the order of a set-up: software, machine, places."""
    software = [python(), *requirements(), *defects(), pairing(), checkout()]
    machine = [processor(), *shared_memory(), gpu(), slurm()]
    places = [*store(settings.store), tracking(settings.tracking), *evaluation_sets(settings.evaluation_root)]
    return [*software, *machine, *places]
