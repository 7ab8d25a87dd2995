"""For all tests: hypothesis judges results, never how long they took on a busy machine."""

import gc
import os
from pathlib import Path

from hypothesis import Phase, settings

import harness

settings.register_profile("untimed", deadline=None)
settings.register_profile("any", deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
copy = os.environ.get("HARNESS_MUTATED_COPY")
settings.load_profile("any" if copy else "untimed")

if copy:  # tests/mutations.py: the fault in a copy has to be what runs, and any failure will do, the smallest or not
    assert Path(harness.__file__).is_relative_to(copy), f"{harness.__file__} is not the package in {copy}"


def pytest_collection_finish() -> None:
    """What is imported by now stays: without this, each of the collections that libraries force costs half a second."""
    gc.collect()
    gc.freeze()
