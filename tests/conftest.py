"""For all tests: hypothesis judges results, never how long they took on a busy machine."""

import os
from pathlib import Path

from hypothesis import settings

import harness

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if copy := os.environ.get("HARNESS_MUTATED_COPY"):  # tests/mutations.py: a fault in a copy has to be the one that runs
    assert Path(harness.__file__).is_relative_to(copy), f"{harness.__file__} is not the package in {copy}"
