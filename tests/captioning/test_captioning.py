"""Captioning with tiny random models of the real classes: what is written, refused, resumed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from harness.base.errors import DataError, ModelError
from harness.captioning import CaptionFolder, caption, load_captioner
from harness.captioning import caption_shards as carry
from harness.captioning.models import CoCaCaptioner, nucleus
from harness.config.captioner import ImageCaptioner
from harness.config.data import WebdatasetData
from harness.data.dataset.dataset import open_dataset
from harness.data.sources.caption_folder import part_file
from harness.data.sources.inspection import inspect_data
from tests.captioning.tiny import WORDS, save
from tests.data.made import encoded, picture, sample, two_shards, write_tar
from tests.killing import kill_9, script

CPU = torch.device("cpu")


class Echo:
    """Says the batch's size, the seed and the picture's first pixel."""

    def __init__(self) -> None:
        self.calls = 0

    def captions(self, images: Sequence[Image.Image], seed: int) -> list[list[str]]:
        self.calls += 1
        return [[f"{len(images)} {seed} {image.getpixel((0, 0))}", "b"] for image in images]


def folder(tmp_path: Path, name: str, **fields: Any) -> CaptionFolder:
    if not (tmp_path / "shards").exists():
        two_shards(tmp_path / "shards")
    data = WebdatasetData(shards=str(tmp_path / "shards"), pseudo={})
    settings = ImageCaptioner.model_validate({"model": "x", "count": 2, "batch_size": 2, **fields})
    made = CaptionFolder(tmp_path / name, settings, open_dataset(data, tmp_path / "cache"))
    made.begin()
    return made


def written(made: CaptionFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(made.path.glob("[!.]*"))}


def quiet(_: str) -> None:
    pass


def test_shards_and_restarts_end_in_the_same_files_and_make_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carry, "PART", 3)
    whole = folder(tmp_path, "whole")
    assert caption(whole, Echo(), (0, 1), quiet) == (11, 0)
    pieces = folder(tmp_path, "pieces")
    assert caption(pieces, Echo(), (1, 2), quiet)[0] == 5
    source = {"path": str(pieces.path), "raw": "raw"}
    data = WebdatasetData.model_validate({"shards": str(tmp_path / "shards"), "pseudo": {"echo": source}})
    with pytest.raises(
        DataError, match=r"2 of 4 parts of the captions are missing; resume with `harness data caption`"
    ):
        inspect_data(data, tmp_path / "cache")
    again = Echo()
    assert caption(folder(tmp_path, "pieces"), again, (0, 1), quiet)[0] == 6
    assert written(pieces) == written(whole)
    assert caption(pieces, again, (0, 1), quiet) == (0, 0)
    dataset = open_dataset(data, tmp_path / "cache")
    assert len(dataset) == 11
    for i in range(11):
        assert dataset.pseudo("echo", i)[0].endswith(str(dataset.image(i).getpixel((0, 0))))
    with pytest.raises(DataError, match=r"captions made with a different captioner"):
        folder(tmp_path, "pieces", seed=3)


def test_a_damaged_image_is_counted_and_keeps_its_place(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), "PNG"))
    content[len(content) // 2] ^= 0xFF
    samples = [("a", sample(1)), ("b", sample(2, form="PNG") | {"png": bytes(content)}), ("c", sample(3))]
    write_tar(tmp_path / "shards" / "0.tar", samples)
    made = folder(tmp_path, "out", batch_size=3)
    assert caption(made, Echo(), (0, 1), quiet) == (3, 1)
    (row,) = [row for row in pyarrow.parquet.read_table(part_file(made.path, 0)).to_pylist() if row["key"] == "b"]
    assert row["captions"] == []


@pytest.mark.parametrize("kind", ["blip", "blip-2", "git", "vision-encoder-decoder"])
def test_models_of_transformers_from_disk(tmp_path: Path, kind: str) -> None:
    where = str(save(kind, tmp_path / kind))
    images = [picture(number) for number in range(3)]
    fields = {"model": where, "count": 3, "max_tokens": 8, "min_tokens": 3}
    sampled = load_captioner(ImageCaptioner.model_validate(fields), CPU)
    before = torch.random.get_rng_state()
    one, two, other = sampled.captions(images, 1), sampled.captions(images, 1), sampled.captions(images, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert one == two != other
    beams = load_captioner(ImageCaptioner.model_validate(fields | {"method": "beam", "precision": "bf16"}), CPU)
    searched = beams.captions(images, 1)
    assert searched == beams.captions(images, 2)
    for found in (one, searched):
        assert [len(texts) for texts in found] == [3, 3, 3]
        assert {word for texts in found for text in texts for word in text.split()} <= {*WORDS, "[UNK]"}


def test_coca_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.config.model import Model
    from harness.models import build_towers

    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16,
                       "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": text | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": text | {"dim_head": 8, "n_queries": 4, "attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    towers = build_towers(Model(name="small-coca", config=config))
    monkeypatch.setattr("harness.models.build_towers", lambda spec: towers)
    fields = {"model": "coca_ViT-B-32", "weights": "some", "count": 2, "max_tokens": 40, "min_tokens": 3}
    images = [picture(number) for number in range(3)]
    coca = load_captioner(ImageCaptioner.model_validate(fields), CPU)
    assert isinstance(coca, CoCaCaptioner)
    found = coca.captions(images, 1)
    assert found == coca.captions(images, 1)
    assert [len(texts) for texts in found] == [2, 2, 2]
    assert not any("<" in text and "_of_text>" in text for texts in found for text in texts)
    with pytest.raises(ModelError, match="CoCa without weights says random words"):
        load_captioner(ImageCaptioner.model_validate(fields | {"weights": None}), CPU)
    with pytest.raises(ModelError, match="CoCa is sampled"):
        load_captioner(ImageCaptioner.model_validate(fields | {"method": "beam"}), CPU)


def test_nucleus_sampling_draws_from_the_smallest_set_with_its_probability() -> None:
    shares = torch.tensor([0.1, 0.5, 0.05, 0.35])
    torch.manual_seed(0)
    for top_p, allowed in ((0.4, {1}), (0.49, {1}), (0.6, {1, 3}), (0.9, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        drawn = nucleus(shares.log().expand(4000, 4), top_p).squeeze(1)
        assert set(drawn.tolist()) == allowed
        kept = torch.where(torch.isin(torch.arange(4), torch.tensor(sorted(allowed))), shares, 0)
        frequency = torch.bincount(drawn, minlength=4) / 4000
        assert torch.allclose(frequency, kept / kept.sum(), atol=0.04)


def test_models_that_are_not_there_or_bring_code_are_refused(tmp_path: Path) -> None:
    def load(model: Path | str) -> None:
        load_captioner(ImageCaptioner(model=str(model)), CPU)

    with pytest.raises(ModelError, match="cannot be loaded: it is not on this machine"):
        load("nobody/no-such-model")
    code = tmp_path / "code"
    code.mkdir()
    (code / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (code / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ModelError, match="incomplete or needs its own code"):
        load(code)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="bert is not an image-to-text model"):
        load(tmp_path / "bert")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"method": "beam", "beams": 2}, "raise beams"),
        ({"min_tokens": 40}, "not below max_tokens"),
        ({"n": 1}, "Extra"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        ImageCaptioner.model_validate({"model": "x", **fields})


SCRIPT = """
import sys
from pathlib import Path
from harness.captioning import caption, caption_shards as carry
carry.PART = 1
from tests.captioning.test_captioning import Echo, folder
caption(folder(Path(sys.argv[1]), sys.argv[2]), Echo(), (0, 1), lambda text: print(text, flush=True))
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[str]:
        return script(SCRIPT, str(tmp_path), name)

    assert start("whole").wait(600) == 0
    assert kill_9(lambda: start("killed"), times=4, lines=3, pause_s=0.01) >= 1
    assert start("killed").wait(600) == 0
    made = [tmp_path / "whole", tmp_path / "killed"]
    whole, killed = ({file.name: file.read_bytes() for file in path.glob("[!.]*")} for path in made)
    assert whole == killed
