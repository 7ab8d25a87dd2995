"""One pass over the images for everything that is measured on them, and features kept on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.evaluation import Evaluation
from harness.evaluation.cache import FeatureCache, weights_digest
from harness.evaluation.evaluator import EvaluationTask, Evaluator, Result
from harness.evaluation.sets import read_set
from tests.damages import DAMAGES
from tests.evaluation.worlds import TinyClip, classification_set, retrieval_set

CPU = torch.device("cpu")


def jobs(root: Path) -> list[EvaluationTask]:
    """Both kinds of set, each under two protocols."""
    spec, found = Evaluation(), []
    for name, path, protocol in (
        ("things", classification_set(root / "things"), "slip"),
        ("pictures", retrieval_set(root / "pictures"), "alip"),
    ):
        one = read_set(path)
        found += [
            EvaluationTask(one, spec),
            EvaluationTask(one.called(f"{name}@{protocol}"), spec.under(f"{name}@{protocol}")),
        ]
    return found


def measured(model: TinyClip, root: Path, cache: FeatureCache | None = None) -> tuple[Result, ...]:
    return Evaluator(model, jobs(root), Evaluation(), batch_size=7, device=CPU, cache=cache)()


def test_protocols_share_one_pass_and_measure_what_each_alone_would(tmp_path: Path) -> None:
    model = TinyClip()
    together = measured(model, tmp_path)
    assert model.images_seen == 24 + 22
    alone = [Evaluator(model, [job], Evaluation(), batch_size=7, device=CPU)()[0] for job in jobs(tmp_path)]
    assert [one.evaluation for one in together] == [one.evaluation for one in alone]
    assert len({one.evaluation.protocol_id for one in together}) == 4


def test_what_is_known_is_not_encoded_again_and_gives_the_same_numbers(tmp_path: Path) -> None:
    model = TinyClip()
    cache = FeatureCache(tmp_path / "cache", weights_digest(model.clip))
    first = measured(model, tmp_path, cache)
    seen = (model.images_seen, model.texts_seen)
    assert [one.evaluation for one in measured(model, tmp_path, cache)] == [one.evaluation for one in first]
    assert (model.images_seen, model.texts_seen) == seen


def test_other_weights_are_other_features(tmp_path: Path) -> None:
    first, second = TinyClip(0), TinyClip(1)
    assert weights_digest(first.clip) != weights_digest(second.clip)
    for model in (first, second):
        measured(model, tmp_path, FeatureCache(tmp_path / "cache", weights_digest(model.clip)))
        assert model.images_seen == 46


def _as_older_code_wrote(content: bytes) -> bytes:
    return content[:-32]


def _of_other_values(content: bytes) -> bytes:
    return content[:128] + np.full(12, np.nan, dtype=np.float32).tobytes() + content[176:]


def _turned(content: bytes) -> bytes:
    """Rows in the opposite order."""
    rows = np.frombuffer(content, dtype=np.float32, count=12, offset=128).reshape(4, 3)
    return content[:128] + rows[::-1].tobytes() + content[176:]


def _of_another(content: bytes) -> bytes:
    folder = Path(tempfile.mkdtemp())
    FeatureCache(folder, "another").get("it", lambda: torch.zeros(4, 3))
    return next(folder.glob("*.npy")).read_bytes()


@pytest.mark.parametrize(
    "damage", [lambda content: content[:100], _as_older_code_wrote, _of_other_values, _turned, _of_another]
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = FeatureCache(tmp_path, "owner")
    wanted = torch.randn(4, 3)
    cache.get("it", lambda: wanted)
    (file,) = tmp_path.glob("*.npy")
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    assert torch.equal(cache.get("it", lambda: wanted), wanted)
    assert torch.equal(FeatureCache(tmp_path, "owner").get("it", _never), wanted)


@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_no_file_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    cache, wanted = FeatureCache(tmp_path, "owner"), torch.randn(4, 3)
    cache.get("it", lambda: wanted)
    (file,) = tmp_path.glob("*.npy")
    DAMAGES[how](file)
    assert torch.equal(cache.get("it", lambda: wanted), wanted)
    assert (f"{file} is damaged" in capsys.readouterr().err) == (how != "gone")
    assert torch.equal(cache.get("it", _never), wanted)


def test_the_oldest_go_first_and_the_folder_stays_bounded(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "owner", limit_bytes=3000)
    for number in range(5):
        cache.get(f"n{number}", lambda: torch.zeros(200))
        for age, file in enumerate(sorted(tmp_path.glob("*.npy"), key=lambda one: one.stat().st_mtime_ns)):
            os.utime(file, (age, age))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.npy")) <= 3000
    cache.get("n4", _never)
    with pytest.raises(AssertionError):
        cache.get("n0", _never)


def test_a_folder_that_cannot_be_written_only_means_no_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert torch.equal(FeatureCache(tmp_path / "file", "owner").get("it", lambda: torch.ones(2)), torch.ones(2))
    assert "features are not kept" in capsys.readouterr().err


def _never() -> torch.Tensor:
    raise AssertionError("computed again")
