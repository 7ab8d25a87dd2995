"""Long-caption sets as published, the share of captions that the context cuts, and bad input."""

from __future__ import annotations

import json
import random
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation, standing_metric
from harness.evaluation.contents import contents_at
from harness.evaluation.evaluator import Result, evaluate
from harness.evaluation.layout import describe, locate
from harness.evaluation.sets import read_set
from harness.models.tokens import cut_by_context
from tests.evaluation.worlds import TinyClip, picture, retrieval_members, write_set

TOKENIZER = open_clip.SimpleTokenizer(context_length=16)
LONG = "a very long caption of a street with many words that no short context can ever hold, number {}"
CAPTIONS = [LONG.format(index) if index % 3 == 0 else f"picture {index}" for index in range(7)]


def pictures(folder: Path, suffix: str = "jpg") -> None:
    folder.mkdir(parents=True)
    for index in range(len(CAPTIONS)):
        (folder / f"p{index}.{suffix}").write_bytes(picture(index, suffix))


def urban1k(root: Path) -> Path:
    pictures(root / "urban1k" / "image")
    (root / "urban1k" / "caption").mkdir()
    for index, caption in enumerate(CAPTIONS):
        (root / "urban1k" / "caption" / f"p{index}.txt").write_text(caption + "\n")
    return root / "urban1k"


def docci(root: Path) -> Path:
    pictures(root / "docci" / "images")
    rows = [
        {"example_id": f"p{index}", "split": "test", "image_file": f"p{index}.jpg", "description": caption}
        for index, caption in enumerate(CAPTIONS)
    ]
    rows += [{**rows[0], "example_id": "other", "split": "train", "description": "never"}]
    (root / "docci" / "docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, rows)))
    return root / "docci"


def iiw(root: Path) -> Path:
    pictures(root / "iiw" / "images_aar")
    rows = [{"image/key": f"p{index}", "IIW": caption, "IIW-P5B": "machine"} for index, caption in enumerate(CAPTIONS)]
    (root / "iiw" / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "iiw"


def dci(root: Path) -> Path:
    pictures(root / "dci" / "photos")
    (root / "dci" / "annotations").mkdir()
    for index, caption in enumerate([*CAPTIONS, ""]):
        one = {"image": f"p{index}.jpg", "short_caption": "short", "extra_caption": caption}
        (root / "dci" / "annotations" / f"p{index}.json").write_text(json.dumps(one))
    return root / "dci"


LAYOUTS = (urban1k, docci, iiw, dci)


def measured(path: Path) -> Result:
    (found,) = evaluate(TinyClip(3), [read_set(path)], Evaluation(), batch_size=4, device=torch.device("cpu"))
    return found


@pytest.mark.parametrize("make", LAYOUTS)
def test_a_published_set_is_its_twin_in_shards(tmp_path: Path, make: Any) -> None:
    path = make(tmp_path)
    members = [(f"p{i}.jpg", picture(i, "jpg")) for i in range(7)]
    members += [(f"p{i}.txt", caption.encode()) for i, caption in enumerate(CAPTIONS)]
    members.sort()
    twin = write_set(tmp_path / "twin", [members], {"dataset_type.txt": "retrieval"})
    found, expected = measured(path).evaluation, measured(twin).evaluation
    assert found.metrics == expected.metrics
    assert found.protocol_id == expected.protocol_id
    assert contents_at(path, path.name, "test", tmp_path / "store").samples.said() == found.protocol["samples"]
    assert standing_metric(str(path)) == f"{path.name}/image_retrieval_recall@1"
    assert standing_metric(path.name) == standing_metric(str(path))


def test_dci_may_lie_below(tmp_path: Path) -> None:
    dci(tmp_path / "densely_captioned_images").rename(tmp_path / "moved")
    (tmp_path / "densely_captioned_images").rmdir()
    (tmp_path / "DCI").mkdir()
    (tmp_path / "moved").rename(tmp_path / "DCI" / "densely_captioned_images")
    assert len(read_set(tmp_path / "DCI")) == 7


def test_docci_has_parts(tmp_path: Path) -> None:
    path = docci(tmp_path)
    assert len(read_set(path)) == 7
    assert read_set(path, split="train").captions == (("never",),)


def counted(text: str) -> int:
    """How many tokens a text has, with those of start and end."""
    return len(TOKENIZER.encode(text)) + 2


def test_which_texts_the_context_cuts() -> None:
    words = ["cat", "dogs", "antidisestablishmentarianism", "é", "&amp;", "x" * 30]
    choose = random.Random(0)
    texts = [" ".join(choose.choices(words, k=length)) for length in range(25) for _ in range(8)]
    assert {counted(text) - 16 for text in texts} >= {-1, 0, 1}
    assert cut_by_context(TOKENIZER, texts) == [counted(text) > 16 for text in texts]
    assert cut_by_context(TOKENIZER, []) == []


class Words:
    """A tokenizer of one token a word: id 1 ends a text, or nothing does; `padding` fills it up."""

    context_length = 12

    def __init__(self, end: int | None, padding: int) -> None:
        self.end, self.padding = [] if end is None else [end], padding

    def __call__(self, texts: list[str], context_length: int = 12) -> Tensor:
        rows = []
        for text in texts:
            ids = [10 + len(word) for word in text.split()][: context_length - len(self.end)] + self.end
            rows.append(ids + [self.padding] * (context_length - len(ids)))
        return torch.tensor(rows)


@pytest.mark.parametrize(("end", "padding"), [(1, 1), (1, 0), (None, 0)])
def test_padding_may_be_the_end_token(end: int | None, padding: int) -> None:
    texts = ["word " * length for length in range(20)]
    room = 12 - (end is not None)
    assert cut_by_context(Words(end, padding), texts) == [length > room for length in range(20)]


def test_the_share_is_in_the_record_and_a_note(tmp_path: Path) -> None:
    found = measured(urban1k(tmp_path)).evaluation
    assert found.captions_cut == pytest.approx(3 / 7)
    assert "42.9% of the captions are longer than the model's context, which leaves out their ends" in found.notes
    short = write_set(tmp_path / "short", [retrieval_members([["a"], ["b"]])], {"dataset_type.txt": "retrieval"})
    assert measured(short).evaluation.captions_cut == 0
    assert not measured(short).evaluation.notes


def test_equal_captions_count_each(tmp_path: Path) -> None:
    captions = [[LONG, "a"], [LONG, "b"], ["a"]]
    path = write_set(tmp_path / "twice", [retrieval_members(captions)], {"dataset_type.txt": "retrieval"})
    assert measured(path).evaluation.captions_cut == pytest.approx(2 / 5)


def test_a_prefix_counts(tmp_path: Path) -> None:
    texts = [["word " * 13], ["word " * 14]]
    path = write_set(tmp_path / "edge", [retrieval_members(texts)], {"dataset_type.txt": "retrieval"})
    for prefix, share in (("", 0.0), ("a", 0.5), ("a photo of", 1.0)):
        spec = Evaluation(prefix=prefix)
        (found,) = evaluate(TinyClip(), [read_set(path)], spec, batch_size=4, device=torch.device("cpu"))
        assert found.evaluation.captions_cut == share


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text().partition("## Long captions")[2]
    spec = Evaluation.model_validate(
        tomllib.loads(textwrap.dedent("    " + page.split("\n\n    ")[1]).split("\n\n")[0])["evaluation"]
    )
    for make in LAYOUTS:
        make(tmp_path)
    sets = [read_set(locate(one, evaluation_root=tmp_path, embedded={})) for one in spec.references]
    found = evaluate(TinyClip(), sets, spec, batch_size=4, device=torch.device("cpu"))
    assert [one.evaluation.captions_cut for one in found] == [pytest.approx(3 / 7)] * 4


def test_bad_files(tmp_path: Path) -> None:
    def refused(path: Path, sentence: str, split: str = "test") -> None:
        with pytest.raises(DataError, match=sentence):
            describe(path, split=split)

    refused(docci(tmp_path), "holds no samples", "nothing")
    refused(iiw(tmp_path), "has no part 'train'", "train")
    path = urban1k(tmp_path)
    (path / "caption" / "p3.txt").write_text(" \n")
    refused(path, 'the caption of "p3" is blank')
    (path / "caption" / "p3.txt").unlink()
    (path / "image" / "p4.jpg").unlink()
    refused(path, "the image p4 is missing; copy it to .*image")
    file = tmp_path / "docci" / "docci_descriptions.jsonlines"
    file.write_text('{"example_id": "a"}\n')
    refused(tmp_path / "docci", "line 1: is no annotation of an image .has no 'split'")
    (tmp_path / "iiw" / "data.jsonl").write_text("[]\nx")
    refused(tmp_path / "iiw", "is no annotation of an image")
    (dci(tmp_path) / "annotations" / "p2.json").write_text("3")
    refused(tmp_path / "dci", "p2.json: is no annotation of an image")
