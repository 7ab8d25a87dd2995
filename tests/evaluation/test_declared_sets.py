"""Evaluation sets that a TOML file declares: what they state, their versions, subsets of classes, and bad input."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import torch

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation, standing_metric
from harness.config.load import load
from harness.evaluation.contents import contents_at
from harness.evaluation.evaluator import evaluate
from harness.evaluation.layout import describe, locate
from harness.evaluation.sets import read_set
from harness.planning.evaluation_sets import EvaluationSets
from harness.planning.plan import Plan, make_plan
from harness.planning.preflight import obstacles
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.evaluation.test_pairs import sugar_crepe, vl_checklist, winoground
from tests.evaluation.worlds import (
    TinyClip,
    classification_files,
    classification_members,
    classification_set,
    picture,
    retrieval_set,
    write_set,
)
from tests.reporting.made import DATA

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def declared(folder: Path, text: str, name: str = "mine") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(textwrap.dedent(text))
    return file


def test_what_it_does_not_state_is_that_of_its_folder(tmp_path: Path) -> None:
    folder = classification_set(tmp_path / "things")
    plain, stated = describe(folder), describe(declared(tmp_path, 'version = "1"\ndata = "things"'))
    assert (stated.name, stated.version) == ("mine", "1")
    for part in ("path", "task", "shards", "classnames", "templates"):
        assert getattr(stated, part) == getattr(plain, part)
    assert read_set(tmp_path / "mine.toml").samples == read_set(folder).samples


def test_names_and_templates_are_those_that_it_states(tmp_path: Path) -> None:
    members = classification_members([0, 1, 1, 0])
    write_set(tmp_path / "bare", [members], {})  # no text files at all
    names, templates = ["ein Hund", "keine Katze"], ["ein Foto: {c}", "{c}"]
    text = f'version = "1"\ndata = "bare"\nclassnames = {json.dumps(names)}\ntemplates = {json.dumps(templates)}'
    found = read_set(declared(tmp_path, text))
    write_set(tmp_path / "twin", [members], {"classnames.txt": "ein Hund\nkeine Katze"})
    (tmp_path / "twin" / "zeroshot_classification_templates.txt").write_text("ein Foto: {c}\n{c}\n")
    both = [found, read_set(tmp_path / "twin")]
    ours, theirs = evaluate(TinyClip(), both, Evaluation(), batch_size=4, device=torch.device("cpu"))
    assert ours.evaluation.metrics == theirs.evaluation.metrics
    assert ours.evaluation.protocol_id == theirs.evaluation.protocol_id


def test_a_subset_of_the_labels(tmp_path: Path) -> None:
    labels = [0, 3, 5, 3, 1, 5, 5]
    write_set(tmp_path / "things", [classification_members(labels)], classification_files(6))
    found = read_set(declared(tmp_path, 'version = "1"\ndata = "things"\nlabels = [5, 3]'))
    assert found.layout.classnames == ("thing number 5", "thing number 3")
    assert found.labels == (1, 0, 1, 0, 0)
    assert found.keys == tuple(f"s{index:07d}" for index in (1, 2, 3, 5, 6))
    named = declared(
        tmp_path, 'version = "1"\ndata = "things"\nlabels = [5, 3]\nclassnames = ["five", "three"]', "named"
    )
    assert read_set(named).layout.classnames == ("five", "three")
    assert read_set(named).labels == found.labels


def test_a_version_that_changed_says_what(tmp_path: Path) -> None:
    classification_set(tmp_path / "things")
    store = tmp_path / "store"

    def contents(text: str) -> None:
        contents_at(declared(tmp_path, f'data = "things"\n{text}'), "mine", "test", store)

    names = [f"thing number {index}" for index in range(6)]
    contents('version = "1"')
    contents('version = "1"')
    changed = f'version = "1"\nclassnames = {json.dumps([*names[:5], "a cat"])}'
    with pytest.raises(
        DataError, match=r"mine.toml: version: .*class names -'thing number 5' \+'a cat'; write another"
    ):
        contents(changed)
    contents(changed.replace('"1"', '"2"'))
    with pytest.raises(DataError, match="class names in another order"):
        contents(f'version = "1"\nclassnames = {json.dumps(names[::-1])}')
    with pytest.raises(DataError, match=r"templates -'a photo of a \{c\}.', '\{c\}', .* \+'\{c\}!'"):
        contents('version = "1"\ntemplates = ["{c}!"]')
    contents('version = "1"')
    (tmp_path / "things" / "test" / "2.tar").unlink()
    classification_set(tmp_path / "things", shards=2)
    with pytest.raises(DataError, match="samples 24 -> 16"):
        contents('version = "1"')
    write_set(tmp_path / "things", [classification_members([0] * 8, 8 * shard) for shard in range(3)], {})
    with pytest.raises(DataError, match="other keys, images, labels or captions"):
        contents('version = "1"')


def test_a_damaged_memory_of_a_version_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classification_set(tmp_path / "things")
    file = declared(tmp_path, 'version = "1"\ndata = "things"')
    contents_at(file, "mine", "test", tmp_path / "store")
    (known,) = (tmp_path / "store" / "versions").iterdir()
    known.write_text(known.read_text().replace("thing number 0", "thing number 9"))
    contents_at(file, "mine", "test", tmp_path / "store")
    assert "is damaged: what the version of mine was before is not known" in capsys.readouterr().err
    contents_at(file, "mine", "test", tmp_path / "store")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('data = "things"', "mine.toml: version: required key is missing"),
        ('version = "1"\ndata = "thing"', "mine.toml: data: there is no folder 'thing'"),
        ('version = "1"\ndata = "things"\nclasses = ["a"]', "mine.toml: classes: "),
        ('version = "1"\ndata = "things"\ntemplates = ["a photo"]', "has no {c}"),
        ('version = "1"\ndata = "things"\nlabels = [1, 1]', "labels names a label twice"),
        ('version = "1"\ndata = "things"\nlabels = [9]', "mine.toml: labels: label 9 has no class name"),
        ('version = "1"\ndata = "things"\nlabels = [1]\nclassnames = ["a", "b"]', "2 class names and 1 labels"),
        ('version = "1"\ndata = "pictures"\nclassnames = ["a"]', "a set without classes has no classnames"),
        ('version = "1"\ndata = "pictures"\nlabels = [1]', "only a set with one label an image"),
        ('version = "1"\ndata = "empty"\nclassnames = ["a"]\ntemplates = ["{c}"]', "holds no samples"),
        ('version = "1"\ndata = "things"\nlabels = [7]\nclassnames = ["a"]', "mine.toml: holds no samples"),
        ("version = 1", "mine.toml: version: "),
        ("version", "mine.toml: is not valid TOML"),
    ],
)
def test_bad_declarations(tmp_path: Path, text: str, sentence: str) -> None:
    classification_set(tmp_path / "things")
    retrieval_set(tmp_path / "pictures")
    write_set(tmp_path / "empty", [[]], {})
    with pytest.raises(DataError) as error:
        read_set(declared(tmp_path, text))
    assert sentence in str(error.value)


def experiment(folder: Path, *sets: str) -> Path:
    file = folder / "experiment.toml"
    file.write_text(f"[evaluation]\nsets = {json.dumps(sets)}\n")
    return file


def test_the_primary_metric_is_that_of_the_files(tmp_path: Path) -> None:
    classification_set(tmp_path / "things")
    folder = vl_checklist(tmp_path)
    retrieval_set(tmp_path / "pictures")
    members = [("a.png", picture(0)), ("a.txt", b"one\ntwo")]
    write_set(tmp_path / "choices", [members], {"dataset_type.txt": "image_caption_selection"})
    write_set(tmp_path / "several", [members], {"dataset_type.txt": "multilabel"})
    declared(tmp_path, 'version = "1"\ndata = "pictures"')
    for reference, metric in {
        f"./{folder.relative_to(tmp_path)}/action": "action/acc",
        "./things": "things/acc1",
        "./pictures": "pictures/image_retrieval_recall@1",
        "mine.toml": "mine/image_retrieval_recall@1",
        "./choices": "choices/acc",
        "./several": "several/mean_average_precision",
        "./things@linear_probe": "things@linear_probe/lp_acc1",
    }.items():
        assert load(experiment(tmp_path, reference)).primary == metric
    assert standing_metric("mine.toml@lowercase") == "mine@lowercase/acc1"  # under evaluation_root: not known here


def planned(folder: Path, *sets: str) -> Plan:
    file = experiment(folder, *sets)
    return make_plan(load(file), name="mine", where=str(file), inspect=lambda _: DATA)


def test_check_knows_pair_tasks_and_versions(tmp_path: Path) -> None:
    classification_set(tmp_path / "things")
    sugar_crepe(tmp_path)
    winoground(tmp_path)
    file = declared(tmp_path, 'version = "1"\ndata = "things"')
    settings = Settings(store=tmp_path / "store", evaluation_root=tmp_path)
    one = planned(tmp_path, "./mine.toml", "./winoground", "./sugar_crepe/add_att.json", "things")
    assert list(obstacles(one, settings)) == []
    file.write_text('version = "1"\ndata = "things"\ntemplates = ["{c}"]')
    (found,) = obstacles(one, settings)
    assert "version '1' of mine has changed: templates" in str(found.error)
    sets = EvaluationSets(Store(tmp_path / "store"), tmp_path)
    (experiment,) = one.experiments.values()
    assert "has changed" in sets.asked(experiment)[0].unreadable


@pytest.mark.parametrize("name", ["pets_de.toml", "streets.toml"])
def test_the_examples_of_the_documentation_run(tmp_path: Path, name: str) -> None:
    lines = PAGE.partition(f"    # {name}\n")[2].partition("\n\n")[0]
    write_set(tmp_path / "pets", [classification_members([0, 1, 2, 1])], {})
    write_set(tmp_path / "streets", [[("a.png", picture(0)), ("a.txt", b"no cars here\ncars here")]], {})
    file = declared(tmp_path, lines, name.removesuffix(".toml"))
    found = read_set(locate(f"./{name}", evaluation_root=None, embedded={}, relative_to=tmp_path))
    assert found.name == file.stem
    (result,) = evaluate(TinyClip(), [found], Evaluation(), batch_size=4, device=torch.device("cpu"))
    assert result.evaluation.metrics
