"""Effective robustness: the fit, class subsets, and the commands of the documentation on small data."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest

from harness.base.errors import SpecError
from harness.cli import main
from harness.evaluation.conventions import conventional_classnames, imagenet_labels
from harness.reporting.references import External
from harness.reporting.robustness import shifts
from harness.statistics.robustness import fit_baseline
from tests.evaluation.test_start import CONFIG, weights
from tests.evaluation.worlds import classification_members, write_set

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text().partition("## Robustness\n")[2]


def logit(share: float) -> float:
    return math.log(share) - math.log(1 - share)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_fit_is_least_squares_between_logits() -> None:
    random = np.random.default_rng(0)
    here, there = random.uniform(0.05, 0.95, 14), random.uniform(0.05, 0.95, 14)
    fit = fit_baseline(list(zip(here.tolist(), there.tolist(), strict=True)))
    slope, intercept = np.polyfit(np.log(here / (1 - here)), np.log(there / (1 - there)), 1)
    assert (fit.slope, fit.intercept) == pytest.approx((slope, intercept), rel=1e-10)
    expected = [sigmoid(slope * logit(x) + intercept) for x in here]
    assert fit.residual == pytest.approx(math.sqrt(np.mean((there - expected) ** 2)), rel=1e-10)
    assert (fit.models, fit.lowest, fit.highest) == (14, min(here), max(here))


def numbers(name: str, source: str = "s", **shares: float) -> list[External]:
    return [External(name, f"{key.replace('_', '-')}/acc1", value, source, {}) for key, value in shares.items()]


def line(here: float) -> float:
    return sigmoid(0.8 * logit(here) - 0.5)


BASELINE = [one for here in (0.2, 0.4, 0.7) for one in numbers(f"{here}", imagenet1k=here, imagenetv2=line(here))]


def test_a_model_on_the_line_is_not_robust() -> None:
    on = numbers("on", imagenet1k=0.55, imagenetv2=line(0.55))
    above = numbers("above", imagenet1k=0.9, imagenetv2=line(0.9) + 0.07)
    (found,), absent = shifts([*on, *above], BASELINE, {})
    assert [one.effective for one in found.models] == pytest.approx([0, 0.07], abs=1e-12)
    assert [one.is_outside for one in found.models] == [False, True]
    assert [reason.partition(":")[0] for reason in absent] == [
        "imagenet_sketch",
        "imagenet-a",
        "imagenet-r",
        "objectnet",
    ]


def test_a_subset_is_compared_with_its_own_set() -> None:
    base = [one for here in (0.3, 0.6) for one in numbers(f"{here}", subset=here, imagenet_a=line(here))]
    ours = numbers("ours", imagenet1k=0.5, subset=0.4, imagenet_a=line(0.4))
    (found,), _ = shifts(ours, base, {"imagenet-a": "subset"})
    assert (found.here, found.models[0].here) == ("subset", 0.4)
    assert found.models[0].effective == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "baseline", "sentence"),
    [
        (numbers("a", imagenet1k=0.5), BASELINE, "imagenetv2: no model with imagenet1k/acc1 and imagenetv2/acc1"),
        (numbers("a", imagenet1k=0.5, imagenetv2=0.4), BASELINE[:2], "fewer than two models of the baseline"),
        (numbers("a", imagenet1k=1.0, imagenetv2=0.4), BASELINE, "an accuracy of 100% has no logit"),
        (
            numbers("a", imagenet1k=0.5, imagenetv2=0.4),
            [*BASELINE[:2], *numbers("b", imagenet1k=0.2, imagenetv2=0.3)],
            "fewer than two models with different accuracies",
        ),
        ([*numbers("a", imagenet1k=0.5), *numbers("a", imagenet1k=0.6)], BASELINE, "two numbers for imagenet1k/acc1"),
    ],
)
def test_what_cannot_be_compared(ours: list[External], baseline: list[External], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        shifts(ours, baseline, {})


def test_subsets_are_those_of_their_authors() -> None:
    # the first classes in the code of Hendrycks et al.
    assert imagenet_labels("imagenet-a")[:10] == (6, 11, 13, 15, 17, 22, 23, 27, 30, 37)
    assert imagenet_labels("imagenet-r")[:10] == (1, 2, 4, 6, 8, 9, 11, 13, 22, 23)
    assert (len(imagenet_labels("imagenet-a")), imagenet_labels("imagenet-a")[-1]) == (200, 988)
    assert conventional_classnames(Path("wds_imagenet-a_test"))[:2] == ["stingray", "goldfinch"]
    assert conventional_classnames(Path("wds/imagenet-r"))[0] == "goldfish"
    assert conventional_classnames(Path("imagenetv2")) == conventional_classnames(Path("imagenet1k"))


def example(number: int) -> str:
    block = [one for one in PAGE.split("\n\n") if one.startswith("    ")][number]
    return textwrap.dedent(block)


def test_the_commands_of_the_documentation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HARNESS_EVALUATION_ROOT", str(tmp_path))
    template = {"zeroshot_classification_templates.txt": "{c}"}
    names = conventional_classnames(Path("imagenet1k"))
    subset = imagenet_labels("imagenet-a")
    write_set(tmp_path / "imagenet1k", [classification_members([*subset[:30], 0, 1])], template)
    write_set(tmp_path / "imagenet-a", [classification_members(range(30))], template)
    write_set(tmp_path / "imagenetv2", [classification_members(range(30))], template)
    (tmp_path / "imagenet1k_a.toml").write_text(example(0))
    (tmp_path / "tiny.json").write_text(json.dumps(CONFIG))
    for seed, name in enumerate(("a.pt", "b.pt")):
        weights(tmp_path, seed).rename(tmp_path / name)
    rows = {
        f"m{here}": {"imagenet1k/acc1": 100 * here, "imagenet1k_a/acc1": 100 * here, "imagenet-a/acc1": 90 * here}
        for here in (0.01, 0.3, 0.6)
    }
    tables = [f"[rows.'{name}']\n" + "\n".join(f'"{k}" = {v}' for k, v in row.items()) for name, row in rows.items()]
    (tmp_path / "standard.toml").write_text('source = "made"\n' + "\n".join(tables))
    assert "[rows.resnet50]" in example(2)
    evaluate, compare = (shlex.split(command)[1:] for command in example(1).strip().splitlines())
    monkeypatch.setattr("sys.argv", ["harness", *evaluate])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads((tmp_path / "ours.json").read_text())
    assert [one["set"] for one in found["clip"]] == ["imagenet1k", "imagenet1k_a", "imagenetv2", "imagenet-a"]
    assert found["clip"][1]["protocol"]["classnames"]["count"] == 200
    assert found["clip"][1]["metrics"]["acc1"]["samples"] == 30
    assert len(names) == 1000
    for of in found.values():  # an untrained model is at 0, which has no logit
        for one in of:
            one["metrics"]["acc1"]["value"] = 0.25
    (tmp_path / "ours.json").write_text(json.dumps(found))
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["harness", *compare])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "imagenet-a: logit = " in printed
    assert "logit(imagenet1k_a)" in printed
    assert "fitted to 3 models (1.0% to 60.0% there" in printed
    assert "left out: imagenetv2: fewer than two models of the baseline" in printed
