"""Others' numbers as references: files that clip_benchmark writes, tables of papers, and what is wrong with either."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from clip_benchmark import cli as clip_benchmark

from harness.base.errors import SpecError
from harness.config.ablation import Reference
from harness.reporting.references import arm_names, as_toml, assigned, read_external


def result(path: Path, **changes: Any) -> Path:
    """A file as clip_benchmark eval writes it."""
    metrics = {"acc1": 0.62, "acc5": float("nan"), "mean_per_class_recall": 0.6}
    run = {"dataset": "wds/vtab/pets", "model": "ViT-B-32", "pretrained": "laion2b", "task": "zeroshot_classification"}
    path.write_text(json.dumps({**run, "metrics": metrics, "language": "en", **changes}))
    return path


def table(path: Path, **changes: str) -> Path:
    text = {
        "head": 'source = "ALIP, Table 2"',
        "protocol": '[protocol]\nprefix = "a photo of"\nsplit = "test"',
        "rows": '[rows.alip]\n"flickr30k/text_retrieval_recall@1" = 70.5',
    } | changes
    path.write_text("\n".join(text.values()))
    return path


def test_a_result_file_becomes_references_with_its_unknown_parts_named(tmp_path: Path) -> None:
    found = assigned(read_external(result(tmp_path / "a.json")), {"*": "clip"})
    assert {(one.arm, one.metric, one.value) for one in found} == {
        ("clip", "pets/acc1", 0.62),
        ("clip", "pets/mean_per_class_recall", 0.6),
    }
    assert "unknown: split, samples, templates, class names, prefix, precision" in found[0].protocol
    assert "a.json" in found[0].source


def test_its_csv_says_what_its_json_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = result(tmp_path / "a.json")
    recalls = {"image_retrieval_recall@5": 0.25, "text_retrieval_recall@5": 0.5}
    second = result(tmp_path / "b.json", dataset="mscoco_captions", task="zeroshot_retrieval", metrics=recalls)
    output = tmp_path / "all.csv"
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "build", str(first), str(second), "--output", str(output)])
    clip_benchmark.main()
    each = [one for file in (first, second) for one in read_external(file)]
    assert {(one.row, one.metric, one.value) for one in read_external(output)} == {
        (one.row, one.metric, one.value) for one in each
    }


def test_a_papers_table_says_what_it_knows(tmp_path: Path) -> None:
    (one,) = read_external(table(tmp_path / "alip.toml"))
    assert (one.row, one.value, one.source) == ("alip", 0.705, "ALIP, Table 2, alip")
    assert one.said.startswith("split: test; prefix: a photo of; unknown: samples, templates")


def test_what_is_printed_is_read_back_by_an_ablation(tmp_path: Path) -> None:
    references = assigned(read_external(table(tmp_path / "alip.toml")), {})
    tables = tomllib.loads(as_toml(references))["references"]
    assert [Reference.model_validate(one) for one in tables] == references


def test_two_checkpoints_under_one_name(tmp_path: Path) -> None:
    found = read_external(result(tmp_path / "a.json")) + read_external(result(tmp_path / "b.json", pretrained="openai"))
    with pytest.raises(SpecError, match="two numbers for pets/acc1") as raised:
        assigned(found, arm_names(["clip"]))
    assert "ROW=ARM" in str(raised.value)
    arms = arm_names(["ViT-B-32 laion2b=ours", "ViT-B-32 openai=theirs"])
    assert {one.arm for one in assigned(found, arms)} == {"ours", "theirs"}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", "{}", "is not a table of results"),
        ("a.json", "not json", "is not a table of results"),
        ("a.json", "[]", "is not a table of results"),
        ("a.csv", "dataset,task\n", "holds no numbers"),
        ("a.txt", "", '".txt" files are not known'),
        ("a.toml", '[rows.a]\n"x/acc1" = 1', "source"),
        ("a.toml", 'source = "s"\n[rows.a]\nacc1 = 1', "is not a set/metric"),
        ("a.toml", 'source = "s"\nunit = "share"\n[rows.a]\n"x/acc1" = 32.9', "is not a share"),
        ("a.toml", 'source = "s"\n[protocol]\ntemplate = "80"\n[rows.a]\n"x/acc1" = 32.9', "says template"),
    ],
)
def test_what_is_no_table_of_results(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=sentence):
        read_external(tmp_path / name)


def test_a_task_that_is_not_measured_here(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match='task "captioning" is not measured here'):
        read_external(result(tmp_path / "a.json", task="captioning"))
