"""Cluster profiles: the shipped ones are valid, and a mistake in one is told in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.config.profile import Profile, load_profile
from tests.head.made import is_one_sentence

SHIPPED = sorted((Path(__file__).parents[2] / "slurm").glob("*.toml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_profiles(file: Path) -> None:
    profile = load_profile(file)
    assert profile != Profile()
    assert file.read_text().startswith("#:schema ../schemas/profile.schema.json")


def test_there_is_one_for_each_shape() -> None:
    shapes = {file.stem: load_profile(file) for file in SHIPPED}
    assert shapes["one_gpu_nodes"].gpus == 1
    assert (shapes["eight_gpu_nodes"].gpus, shapes["eight_gpu_nodes"].nodes) == (8, 1)
    assert (shapes["multi_node"].gpus, shapes["multi_node"].nodes) == (32, 4)
    assert shapes["cpu_only"].gpus == 0


BAD = [
    ("gpu_per_task = 1", "gpu_per_task: unknown key; did you mean 'gpus_per_task'?"),
    ("time_limit_min = 0", "time_limit_min: should be greater than or equal to 1, not 0"),
    ('mem_gb = "8G"', "mem_gb: should be a number, not '8G'"),
    ('[evaluation]\ntime = 5', "evaluation.time: unknown key; did you mean 'nodes'?"),
    ('sbatch = { array = "0-3" }', "sbatch: sets 'array', which the harness controls; give `array_parallelism`"),
    ("partitions = [", "is not valid TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), BAD)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_profile(file)
    assert is_one_sentence(caught.value)
    assert str(file) in str(caught.value)
    if "did you mean" in sentence:
        sentence = sentence.partition(";")[0] if "evaluation" in sentence else sentence
    assert sentence in str(caught.value)


def test_no_such_profile(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no such file; shipped profiles are in slurm/"):
        load_profile(tmp_path / "none.toml")


def test_one_partition_may_stand_alone() -> None:
    assert Profile.model_validate({"partitions": "gpu", "setup": "module load x"}).partitions == ("gpu",)
