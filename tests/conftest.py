"""For all tests: what is judged is results, never how long they took on a busy machine or a slow disk."""

import gc
import os
import re
from pathlib import Path

import pytest
from hypothesis import Phase, settings

import harness

settings.register_profile("untimed", deadline=None)
settings.register_profile("any", deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
os.fsync = lambda fd: None  # no test cuts the power, and waiting for the disk took a third of the time of all tests
copy = os.environ.get("HARNESS_MUTATED_COPY")
settings.load_profile("any" if copy else "untimed")

if copy:  # tests/mutations.py: the fault in a copy has to be what runs, and any failure will do, the smallest or not
    assert Path(harness.__file__).is_relative_to(copy), f"{harness.__file__} is not the package in {copy}"


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, from child processes too, unless tests are run that are marked for one: results are those of a CPU."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """What is imported by now stays: without this, each of the collections that libraries force costs half a second."""
    gc.collect()
    gc.freeze()
