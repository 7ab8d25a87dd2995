"""`harness check` promises that the runs of a spec start here: what would stop one is named with its line."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.head.made import ABLATION, write
from tests.head.test_cli_light import harness

CLAIM = '[[claims]]\ntext = "t"\narm = "more"\nthan = "plain"\ncompares = "systems"\n'


def check(capsys: pytest.CaptureFixture[str], folder: Path, more: str, *options: str, **files: str) -> list[str]:
    """What a quick check of the small ablation with `more` arms prints besides its last line; it must fail."""
    spec = write(folder, {"ablation.toml": ABLATION + more, **{f"{name}.toml": text for name, text in files.items()}})
    code, out, err = harness(capsys, "check", spec, "--quick", *options)
    assert (code, err) == (1, "")
    return out.replace(f"{folder}/", "").splitlines()[:-1]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HARNESS_STORE", "HARNESS_EVALUATION_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_a_model_that_open_clip_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "[arms.other]\nmodel.name = 'ViT-B-61'\n"
    assert check(capsys, tmp_path, more, "--elsewhere") == [
        "wrong: ablation.toml:11: arms.other.model.name: there is no model 'ViT-B-61'; did you mean 'ViT-B-16'?"
    ]


def test_the_primary_and_claimed_metrics_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = check(
        capsys, tmp_path, CLAIM + "metric = 'shapes/acc3'\n" + CLAIM + "metric = 'shapes_retrieval/acc1'\n"
    )
    assert first.startswith("wrong: ablation.toml:15: claims[0].metric: no evaluation set of arm 'more' that is here")
    assert second.startswith("wrong: ablation.toml:21: claims[1].metric: ")
    spec = write(tmp_path, {"ablation.toml": ABLATION.replace("shapes/acc1", "shape/acc1")})
    _, out, _ = harness(capsys, "check", spec, "--quick")
    assert "ablation.toml:5: primary: " in out
    for known in ("shapes/acc5", "shapes/mean_per_class_recall", "train/loss"):
        spec = write(tmp_path, {"ablation.toml": ABLATION.replace("shapes/acc1", known)})
        assert harness(capsys, "check", spec, "--quick")[0] == 0, known


def evaluation_set(folder: Path, classes: int, samples: int) -> None:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(classes)))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number in range(samples):
            tar.addfile(tarfile.TarInfo(f"{number}.cls"))


def test_an_evaluation_set_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation_set(tmp_path / "mine", classes=3, samples=0)
    more = "[base]\nevaluation.sets = ['shapes', './mine']\n"
    assert check(capsys, tmp_path, more) == [
        "wrong: ablation.toml:11: base.evaluation.sets: mine/test: has no samples; write its shards again"
    ]
    (tmp_path / "mine" / "test" / "0.tar").unlink()
    assert "0.tar: the shard is missing" in check(capsys, tmp_path, more)[0]


def test_a_metric_of_a_set_with_few_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation_set(tmp_path / "mine", classes=3, samples=1)
    claim = "[base]\nevaluation.sets = ['shapes', './mine']\n" + CLAIM
    assert "claims[0].metric: no evaluation set" in check(capsys, tmp_path, claim + "metric = 'mine/acc5'\n")[0]
    spec = write(tmp_path, {"ablation.toml": ABLATION + claim + "metric = 'mine/acc1'\n"})
    assert harness(capsys, "check", spec, "--quick")[0] == 0


def test_sets_of_a_suite_that_are_absent_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = "[base]\nevaluation.sets = ['shapes', 'retrieval']\n"
    spec = write(tmp_path, {"ablation.toml": ABLATION + suite})
    code, out, _ = harness(capsys, "check", spec, "--quick")
    assert (code, out.count("missing: evaluation sets of a suite")) == (0, 1)
    spec = write(tmp_path, {"ablation.toml": ABLATION.replace("shapes/acc1", "retrieval/average") + suite})
    code, out, _ = harness(capsys, "check", spec, "--quick")
    assert (code, out.count(":5: primary: ")) == (1, 1)
    assert harness(capsys, "check", spec, "--quick", "--elsewhere")[0] == 0


def test_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(more: str, **files: str) -> list[str]:
        spec = write(
            tmp_path, {"ablation.toml": ABLATION + more, **{f"{name}.toml": text for name, text in files.items()}}
        )
        code, out, err = harness(capsys, "check", spec, "--quick")
        assert (code, out) == (2, "")
        return err.replace(f"{tmp_path}/", "").splitlines()

    wrong = (
        "[arms.a]\ntrian.x = 1\ncaptions.count = 'five'\n[arms.b]\ntrain = { global_batch_size = 0, durration = 1 }\n"
    )
    lines = said(wrong)
    keys = [line.removeprefix("harness: ablation.toml:").split(": ")[:2] for line in lines]
    assert sorted(keys) == [
        ["11", "arms.a.trian"],
        ["12", "arms.a.captions.count"],
        ["14", "arms.b.train.durration"],
        ["14", "arms.b.train.global_batch_size"],
    ]
    files = "[arms.a]\nmodel.weights = './none.pt'\n[arms.b]\nmodel.config = 'none.json'\n"
    assert [line.split(": ")[1] for line in said(files)] == ["ablation.toml:11", "ablation.toml:13"]
    assert [line.split(": ")[2] for line in said("", small="sede = 3\n[model]\nconfig = 'none.json'\n")] == [
        "model.config",
        "sede",
    ]


def test_data_that_is_here_and_refused_is_wrong_even_where_data_may_be_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "[base]\ndata = { kind = 'table', path = 'set', pseudo = { captioner = 'b' } }\nevaluation.sets = []\n"
    spec = write(tmp_path, {"ablation.toml": ABLATION.replace("shapes/acc1", "train/loss") + more})
    code, out, _ = harness(capsys, "check", spec, "--quick", "--elsewhere")
    assert (code, "missing: " in out, "table is missing" in out) == (0, True, True)
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / "set" / f"{split}.parquet").touch()
    code, out, _ = harness(capsys, "check", spec, "--quick", "--elsewhere")
    assert (code, "missing: " in out) == (1, False)
    assert "wrong: " in out
    assert "holds several splits" in out
