"""Tiny evaluation sets in clip-benchmark's local layout, and a tiny open_clip model, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn

from harness.config.evaluation import Evaluation
from harness.evaluation.measured import Classified, Retrieved
from harness.evaluation.registry import computed, wanted
from harness.evaluation.retrieval import RetrievalRanks
from harness.models.dense import image_tokens, text_tokens
from harness.models.tokens import cut_by_context
from harness.runs.record import Metric

Member = tuple[str, bytes]

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def picture(seed: int, suffix: str = "png") -> bytes:
    """An encoded 40 x 36 image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    formats = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
    Image.fromarray(pixels).save(stream, formats[suffix])
    return stream.getvalue()


def write_shard(path: Path, members: Iterable[Member]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_set(path: Path, shards: Sequence[Sequence[Member]], files: Mapping[str, str], split: str = "test") -> Path:
    for index, members in enumerate(shards):
        write_shard(path / split / f"{index}.tar", members)
    (path / split).mkdir(parents=True, exist_ok=True)
    (path / split / "nshards.txt").write_text(f"{len(shards)}\n")
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def classification_members(labels: Sequence[int], first: int = 0, suffix: str = "png") -> list[Member]:
    members: list[Member] = []
    for seed, label in enumerate(labels, start=first):
        members += [(f"s{seed:07d}.cls", str(label).encode()), (f"s{seed:07d}.{suffix}", picture(seed, suffix))]
    return members


def retrieval_members(captions: Sequence[Sequence[str]], first: int = 0) -> list[Member]:
    members: list[Member] = []
    for seed, texts in enumerate(captions, start=first):
        members += [(f"s{seed:07d}.png", picture(seed)), (f"s{seed:07d}.txt", "\n".join(texts).encode())]
    return members


def classification_files(classes: int) -> dict[str, str]:
    names = [f"thing number {index}" for index in range(classes)]
    templates = ["a photo of a {c}.", "{c}", 'the {c}, said "{c}"']
    return {"classnames.txt": "\n".join(names) + "\n", "zeroshot_classification_templates.txt": "\n".join(templates)}


def classification_set(path: Path, shards: int = 3, per_shard: int = 8, classes: int = 6) -> Path:
    labels = np.random.default_rng(1).integers(0, classes, (shards, per_shard)).tolist()
    suffixes = ["webp", "png", "jpg"]
    members = [classification_members(row, i * per_shard, suffixes[i % 3]) for i, row in enumerate(labels)]
    return write_set(path, members, classification_files(classes))


def retrieval_set(path: Path, images: int = 22) -> Path:
    """One to three captions an image, in two shards."""
    captions = [[f"caption {j} of picture {i}" for j in range(1 + i % 3)] for i in range(images)]
    half = images // 2
    shards = [retrieval_members(captions[:half]), retrieval_members(captions[half:], half)]
    return write_set(path, shards, {"dataset_type.txt": "retrieval"})


def classification_metrics(ranks: Tensor, labels: NDArray[np.int64], classes: int) -> dict[str, Metric]:
    """All metrics of zero-shot classification, from ranks [N] of `labels` [N]."""
    found = Classified(ranks.numpy(), labels, labels, classes, lambda: torch.zeros(len(labels), classes))
    return computed("zeroshot_classification", wanted("zeroshot_classification", Evaluation()), found)


def retrieval_metrics(ranks: RetrievalRanks, owner: Tensor, recall_k: Sequence[int]) -> dict[str, Metric]:
    """All metrics of retrieval; `owner` [M] of the captions."""
    nothing = (torch.zeros(len(ranks.text_retrieval), 1), torch.zeros(len(owner), 1))
    found = Retrieved(ranks.image_retrieval.numpy(), ranks.text_retrieval.numpy(), owner.numpy(), lambda: nothing)
    names = wanted("zeroshot_retrieval", Evaluation(recall_k=tuple(recall_k)))
    return computed("zeroshot_retrieval", names, found)


class TinyClip(nn.Module):
    """A tiny open_clip model with dropout before its towers, so that training mode would show."""

    transform_name = "32 px, bicubic, centre crop, OpenAI mean and std"
    trims = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.clip = open_clip.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(3)
        self.preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=16)
        self.images_seen = self.texts_seen = 0

    def tokenize(self, texts: list[str]) -> Tensor:
        tokens: Tensor = self.tokenizer(texts)
        return tokens

    def cuts(self, texts: list[str], /) -> list[bool]:
        return cut_by_context(self.tokenizer, texts)

    def encode_image(self, images: Tensor, /) -> Tensor:
        self.images_seen += len(images)
        features: Tensor = self.clip.encode_image(self.norm(self.dropout(images)))
        return features

    def encode_text(self, tokens: Tensor, /) -> Tensor:
        self.texts_seen += len(tokens)
        features: Tensor = self.clip.encode_text(tokens)
        return features

    def require_tokens(self, user: str, instead: str, /) -> None:
        """It gives them."""

    def encode_image_tokens(self, images: Tensor, /) -> Tensor:
        self.images_seen += len(images)
        assert isinstance(self.clip.visual, VisionTransformer)
        return image_tokens(self.clip.visual, self.norm(self.dropout(images)))

    def encode_text_tokens(self, tokens: Tensor, /) -> Tensor:
        self.texts_seen += len(tokens)
        return text_tokens(self.clip, tokens)
