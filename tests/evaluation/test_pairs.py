"""Pair tasks in their authors' layouts, against clip-benchmark and float64, with ties, chance levels and bad input."""

from __future__ import annotations

import io
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.datasets.sugar_crepe import SugarCrepe
from clip_benchmark.metrics import image_caption_selection
from PIL import Image

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation, standing_metric
from harness.evaluation.contents import contents_at
from harness.evaluation.evaluator import Result, evaluate
from harness.evaluation.layout import locate
from harness.evaluation.outcomes import read_outcomes, write_outcomes
from harness.evaluation.selection import selected
from harness.evaluation.sets import read_set
from harness.execute.verify import _metric
from harness.runs.request import is_here
from harness.runs.suite_averages import averages
from harness.worker import main
from tests.evaluation.worlds import TinyClip, picture, write_set
from tests.node.small import experiment, planned, prepared

SPLITS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def sugar_crepe(root: Path, pairs: int = 9) -> Path:
    """The seven files of SugarCrepe beside val2017, below `root`; two pairs share each image."""
    folder = root / "sugar_crepe"
    (folder / "val2017").mkdir(parents=True)
    for image in range(pairs):
        (folder / "val2017" / f"{image:012d}.jpg").write_bytes(picture(image, "jpg"))
    for number, split in enumerate(SPLITS):
        pair = {
            str(3 * i): {
                "filename": f"{i // 2:012d}.jpg",
                "caption": f"a {number} left of {i}",
                "negative_caption": f"{i} over {number}",
            }
            for i in range(pairs)
        }
        (folder / f"{split}.json").write_text(json.dumps(pair))
    return folder


def winoground(root: Path, pairs: int = 11) -> Path:
    folder = root / "winoground"
    (folder / "data" / "images").mkdir(parents=True)
    lines = []
    for i in range(pairs):
        for side in (0, 1):
            (folder / "data" / "images" / f"ex_{i}_img_{side}.png").write_bytes(picture(2 * i + side))
        texts = {"caption_0": f"the {i} holds a cup", "caption_1": f"a cup holds the {i}"}
        images = {f"image_{side}": f"ex_{i}_img_{side}" for side in (0, 1)}
        lines.append(json.dumps({"id": i, **images, **texts, "tag": "Noun", "collapsed_tag": "Object"}))
    (folder / "data" / "examples.jsonl").write_text("\n".join(lines))
    return folder


def aro(root: Path) -> Path:
    (root / "aro" / "images").mkdir(parents=True)
    (root / "aro" / "images" / "7.jpg").write_bytes(picture(7, "jpg"))
    box = {"bbox_x": 3, "bbox_y": 5, "bbox_w": 20, "bbox_h": 16}
    texts = {"true_caption": "the dog is on the bed", "false_caption": "the bed is on the dog"}
    pair = {"image_id": 7, "image_path": "7.jpg", **box, **texts}
    for name, more in (("relation", {"relation_name": "on"}), ("attribution", {"attributes": ["big", "red"]})):
        (root / "aro" / f"visual_genome_{name}.json").write_text(json.dumps([{**pair, **more}]))
    return root / "aro"


def vl_checklist(root: Path) -> Path:
    folder = root / "vl_checklist" / "Attribute" / "vg"
    folder.mkdir(parents=True)
    (root / "vl_checklist" / "VG_100K").mkdir()
    (root / "vl_checklist" / "VG_100K" / "1.jpg").write_bytes(picture(1, "jpg"))
    texts = {"POS": ["the cat runs", "a cat runs"], "NEG": ["the cat sits"]}
    (folder / "action.json").write_text(json.dumps([["VG_100K/1.jpg", texts]]))
    return folder


def measured(path: Path, model: Any | None = None) -> Result:
    (found,) = evaluate(model or TinyClip(), [read_set(path)], Evaluation(), batch_size=4, device=torch.device("cpu"))
    return found


def values(found: Result) -> dict[str, float]:
    return {name: metric.value for name, metric in found.evaluation.metrics.items()}


def theirs(dataset: Any, model: TinyClip) -> dict[str, float]:
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=image_captions_collate_fn)
    numbers: dict[str, float] = image_caption_selection.evaluate(model, loader, model.tokenizer, "cpu", amp=False)
    return numbers


def test_all_seven_splits_of_sugar_crepe_are_those_of_clip_benchmark(tmp_path: Path) -> None:
    folder, model, found = sugar_crepe(tmp_path), TinyClip().eval(), []
    for reference in Evaluation(sets=("sugar_crepe",)).references:
        path = locate(reference, evaluation_root=tmp_path, embedded={})
        expected = theirs(SugarCrepe(folder / "val2017", f"{path}.json", model.preprocess), model)
        one = measured(path, model)
        assert values(one) == pytest.approx({name: expected[name] for name in ("acc", "text_acc")}, abs=1e-6)
        assert one.evaluation.undefined == ("image_acc",)
        assert one.evaluation.metrics["acc"].chance == 0.5
        found.append(one.evaluation)
    assert [one.set for one in found] == list(SPLITS)
    assert len({one.metrics["acc"].value for one in found}) > 1
    (average,) = averages(found)
    assert average.metrics["average"].value == pytest.approx(np.mean([one.metrics["acc"].value for one in found]))
    assert average.metrics["average"].chance == 0.5
    assert standing_metric("sugar_crepe") == "sugar_crepe/average"


def test_winoground_is_that_of_clip_benchmark(tmp_path: Path) -> None:
    folder, model = winoground(tmp_path), TinyClip(3).eval()
    images = [Image.open(folder / f"data/images/ex_{i}_img_{side}.png") for i in range(11) for side in (0, 1)]
    pixels = [model.preprocess(image.convert("RGB")) for image in images]
    pairs = [
        (torch.stack(pixels[2 * i : 2 * i + 2]), [f"the {i} holds a cup", f"a cup holds the {i}"]) for i in range(11)
    ]
    found = measured(folder, model)
    assert values(found) == pytest.approx(theirs(pairs, model), abs=1e-6)
    assert {name: one.chance for name, one in found.evaluation.metrics.items()} == {
        "acc": pytest.approx(1 / 6),
        "text_acc": 0.25,
        "image_acc": 0.25,
    }
    assert set(found.outcomes.columns["category"]) == {"Object"}


def test_chosen_in_float64_with_many_shapes() -> None:
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(30, 8)).astype(np.float32), random.normal(size=(40, 8)).astype(np.float32)
    shapes = [(1, 2), (1, 5), (2, 1), (2, 2)] * 50
    groups = [
        (random.choice(30, of, replace=False).tolist(), random.choice(40, described, replace=False).tolist())
        for of, described in shapes
    ]
    found = selected(torch.from_numpy(images), torch.from_numpy(texts), groups)
    for group, (of, described) in enumerate(groups):
        score = images[of].astype(np.float64) @ texts[described].T.astype(np.float64)
        own = range(min(score.shape))
        assert found.found_texts[group] == all(score[i].argmax() == i for i in own)
        assert found.found_images[group] == all(score[:, i].argmax() == i for i in own)


def test_chance_levels_are_those_of_random_scores() -> None:
    random = torch.Generator().manual_seed(0)
    count = 4000
    images, texts = (torch.randn(2 * count, 64, generator=random) for _ in range(2))
    pairs = [([2 * i, 2 * i + 1], [2 * i, 2 * i + 1]) for i in range(count)]
    found = selected(images, texts, pairs)
    assert found.found_texts.mean() == pytest.approx(1 / 4, abs=0.02)
    assert (found.found_texts & found.found_images).mean() == pytest.approx(1 / 6, abs=0.02)


def test_ties_count_as_wrong() -> None:
    same = torch.ones(2, 4)
    found = selected(same, same, [([0], [0, 1]), ([0, 1], [0]), ([0, 1], [0, 1])])
    assert found.found_texts.tolist() == [False, True, False]
    assert found.found_images.tolist() == [True, False, False]


def test_aro_shows_the_box_and_vl_checklist_takes_the_first_texts(tmp_path: Path) -> None:
    found = read_set(aro(tmp_path) / "visual_genome_relation")
    assert found.image(0).size == (20, 16)
    assert np.array_equal(np.asarray(found.image(0)), np.asarray(Image.open(io.BytesIO(picture(7, "jpg"))))[5:21, 3:23])
    assert [group.category for group in found.groups] == ["on"]
    assert read_set(tmp_path / "aro" / "visual_genome_attribution.json").groups[0].category == "big_red"
    assert read_set(vl_checklist(tmp_path) / "action").groups[0].texts == ("the cat runs", "the cat sits")
    assert is_here("aro/visual_genome_relation", Evaluation(), tmp_path)
    assert not is_here("sugar_crepe/add_att", Evaluation(), tmp_path)


def test_an_own_set_of_texts_or_images(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("a.txt", b"one\ntwo\nthree")]
    members += [("b.0.png", picture(1)), ("b.1.jpg", picture(2, "jpg")), ("b.txt", b"one")]
    path = write_set(tmp_path / "own", [members], {"dataset_type.txt": "image_caption_selection"})
    found = measured(path)
    assert found.evaluation.protocol["samples"]["count"] == 2
    metrics = found.evaluation.metrics
    assert metrics["text_acc"].chance == pytest.approx(1 / 3)
    assert metrics["image_acc"].chance == 0.5
    assert [metrics[name].samples for name in ("acc", "text_acc", "image_acc")] == [2, 1, 1]


def test_outcomes_and_contents_say_the_same(tmp_path: Path) -> None:
    path = sugar_crepe(tmp_path) / "swap_obj"
    found = measured(path)
    write_outcomes(tmp_path / "outcomes", found.outcomes)
    (file,) = (tmp_path / "outcomes").iterdir()
    columns = read_outcomes(file).columns
    assert len(set(columns["image"])) == 5  # nine pairs
    for name, metric in found.evaluation.metrics.items():
        again = _metric("image_caption_selection", name, columns)
        assert again == pytest.approx((metric.value, metric.standard_error, metric.samples))
    contents = contents_at(path, "swap_obj", "test", tmp_path / "store")
    assert contents.samples.said() == found.evaluation.protocol["samples"]


def test_a_run_is_trained_and_measured_on_pairs(tmp_path: Path) -> None:
    winoground(tmp_path)
    one = experiment(
        teacher=None, evaluation={"sets": (str(tmp_path / "winoground"), str(sugar_crepe(tmp_path) / "swap_obj"))}
    )
    _, run = planned(tmp_path, one)
    folder = prepared(tmp_path, run)
    assert main(folder.path) == 0
    record = folder.record()
    assert [found.set for found in record.evaluations] == ["winoground", "swap_obj"]
    for found in record.evaluations:
        (file,) = folder.outcomes.glob(f"{found.set}.*.parquet")
        columns = read_outcomes(file).columns
        for name, metric in found.metrics.items():
            again = _metric(found.task, name, columns)
            assert again == pytest.approx((metric.value, metric.standard_error, metric.samples))
    assert set(record.evaluations[0].metrics) == {"acc", "text_acc", "image_acc"}


def test_an_image_that_changes_changes_the_protocol(tmp_path: Path) -> None:
    path = winoground(tmp_path)
    before = read_set(path).digest
    (path / "data" / "images" / "ex_0_img_0.png").write_bytes(picture(99))
    assert read_set(path).digest != before


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    example = page.partition("## Pair tasks")[2].partition("```toml\n")[2].partition("```")[0]
    for make in (sugar_crepe, winoground, aro):
        make(tmp_path)
    spec = Evaluation.model_validate(tomllib.loads(example)["evaluation"])
    paths = [locate(one, evaluation_root=tmp_path, embedded={}) for one in spec.references]
    sets = [read_set(path) for path in paths]
    found = evaluate(TinyClip(), sets, spec, batch_size=4, device=torch.device("cpu"))
    assert len(found) == 10
    assert {one.set for one in averages([one.evaluation for one in found])} == {"sugar_crepe", "aro"}


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ("{}", "holds no samples"),
        ("[]", "holds no samples"),
        ("no json", "is no annotation file of a pair task"),
        ('{"0": {"filename": "x.jpg", "caption": "a"}}', "KeyError: 'negative_caption'"),
        ('{"0": {"filename": "x.jpg", "caption": "a", "negative_caption": null}}', "None is no text"),
        ('{"0": {"filename": "x.jpg", "caption": "a", "negative_caption": " "}}', 'pair "0" has a blank text'),
        ('{"0": {"filename": "x.jpg", "caption": "a", "negative_caption": "b"}}', "the image x.jpg is missing"),
        ('[["x.jpg", {"POS": ["a"], "NEG": []}]]', 'pair "0" has no negative'),
    ],
)
def test_what_is_no_pair_task(tmp_path: Path, pairs: str, sentence: str) -> None:
    (tmp_path / "bad.json").write_text(pairs)
    with pytest.raises(DataError, match=sentence):
        read_set(tmp_path / "bad")


def test_a_pair_without_its_negative_in_a_shard(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("a.txt", b"one")]
    path = write_set(tmp_path / "own", [members], {"dataset_type.txt": "image_caption_selection"})
    with pytest.raises(DataError, match='pair "a" has no negative: 1 image and 1 text'):
        read_set(path)
