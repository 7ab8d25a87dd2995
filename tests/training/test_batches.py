"""What training reads: the tokens of a batch are those of the chosen captions, written as the spec says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from harness.config.captions import Captions
from harness.config.experiment import Experiment
from harness.data.dataset.dataset import open_dataset
from harness.models import Towers
from harness.training.batches import BatchSource
from tests.data.made import sample, write_tar


def tokens_of(texts: list[str]) -> Tensor:
    """Characters, so that letters in capitals are other tokens: open_clip's tokenizer would hide them."""
    return torch.tensor([[ord(letter) for letter in text[:16].ljust(16)] for text in texts])


TOWERS = cast(Towers, SimpleNamespace(tokenize=tokens_of, image_size=16, device=torch.device("cpu")))


def source(folder: Path, captions: Captions) -> BatchSource:
    """Batches over four samples with captions in capitals."""
    samples = [
        (f"{n}", sample(n, captions=[f"FIRST {n}", f"SECOND {n}"]) | {"txt": f"RAW {n}".encode()}) for n in range(4)
    ]
    write_tar(folder / "00000.tar", samples)
    one = Experiment.model_validate(
        {
            "data": {"kind": "webdataset", "shards": str(folder)},
            "captions": captions,
            "train": {"global_batch_size": 4},
        }
    )
    return BatchSource(one, open_dataset(one.data, folder / "cache"), TOWERS, None)


@pytest.mark.parametrize("text", ["none", "lower"])
def test_a_batch_holds_the_chosen_captions_as_the_spec_writes_them(tmp_path: Path, text: Any) -> None:
    made = source(tmp_path, Captions(source="captions", count=2, text=text))
    batch = next(made.batches(0))
    every = [caption for n in batch.samples.tolist() for caption in (f"RAW {n}", f"FIRST {n}", f"SECOND {n}")]
    expected = [caption.lower() for caption in every] if text == "lower" else every
    assert torch.equal(batch.tokens, tokens_of(expected))
    assert batch.chosen.owner.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_sampled_caption_is_the_one_that_was_drawn(tmp_path: Path) -> None:
    made = source(tmp_path, Captions(source="captions", count=2, mixing="sample"))
    for _, batch in zip(range(5), made.batches(0), strict=False):
        words = {(-1, 0): "RAW", (0, 0): "FIRST", (0, 1): "SECOND"}
        drawn = zip(batch.chosen.source.tolist(), batch.chosen.position.tolist(), strict=True)
        expected = [f"{words[one]} {n}" for one, n in zip(drawn, batch.samples.tolist(), strict=True)]
        assert torch.equal(batch.tokens, tokens_of(expected))
