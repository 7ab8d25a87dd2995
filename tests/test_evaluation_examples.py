"""The examples of docs/evaluation.md, one for each task, run as they are on small sets."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli import main
from harness.evaluation.conventions import conventional_classnames, imagenet_labels
from tests.evaluation.test_long_captions import LAYOUTS
from tests.evaluation.test_multilabel import several
from tests.evaluation.test_pairs import aro, sugar_crepe, winoground
from tests.evaluation.test_start import CONFIG, weights
from tests.evaluation.worlds import (
    classification_members,
    classification_set,
    retrieval_members,
    retrieval_set,
    write_set,
)

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## An example of each task\n")[2].partition("\n## ")[0]
PLAIN = {"zeroshot_classification_templates.txt": "{c}"}
CLASSIFIED = {"acc1", "acc5", "mean_per_class_recall"}
PROBED = {f"lp_{name}" for name in CLASSIFIED}
RECALLS = {f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10)}
GEOMETRY = {"modality_gap", "alignment", "image_uniformity", "text_uniformity"}
SHIFTED = ("imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")
EXPECTED: Mapping[str, Mapping[str, set[str]]] = {
    "Zero-shot classification": {"pets": CLASSIFIED},
    "Several labels for an image": {"voc2007_multilabel": {"mean_average_precision"}},
    "Linear probe": {"pets": CLASSIFIED, "pets@linear_probe": PROBED},
    "Retrieval": {"flickr30k": RECALLS | GEOMETRY},
    "Token by token, as FILIP": {
        name: metrics
        for of, metrics in (("pets", CLASSIFIED), ("flickr30k", RECALLS))
        for name in (of, f"{of}@token_wise")
    },
    "Pairs of images and texts": {
        "winoground": {"acc", "text_acc", "image_acc"},
        "replace_rel": {"acc", "text_acc"},
        "sugar_crepe": {"average"},
        "aro": {"average"},
    },
    "Captions longer than the context": {name: {"image_retrieval_recall@1"} for name in ("urban1k", "docci", "dci")},
    "Robustness to a shift": {**{name: {"acc1"} for name in SHIFTED}, "robustness": {"average"}},
    "A set of your own": {"animals": {"acc1", "mean_per_class_recall"}},
    "Class names in another language": {"pets": CLASSIFIED, "tiere": CLASSIFIED},
    "Negation": {"absent": {"acc", "text_acc"}},
    "A metric of your own": {"pets": {*CLASSIFIED, "ReciprocalRank"}},
}
"""By heading: metrics that the example prints, by set."""


@dataclass(frozen=True)
class Example:
    """What a section shows."""

    files: Mapping[str, str]
    commands: tuple[str, ...]

    @property
    def lines(self) -> int:
        """Without blank lines."""
        shown = [*self.commands, *(line for text in self.files.values() for line in text.splitlines())]
        return sum(bool(line.strip()) for line in shown)


def example_of(section: str) -> Example:
    fenced = re.findall(r"(?ms)^```toml\n(.*?)^```", section)
    indented = [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^    .*\n?)+", section)]
    files = {found[1]: text for text in (*fenced, *indented) if (found := re.match(r"# (\S+\.toml)\n", text))}
    commands = [re.sub(r"\s+#.*", "", line) for text in indented for line in text.splitlines() if "harness " in line]
    return Example(files, tuple(commands))


MTEB = "MIEB, with mteb"
"""Its example is Python: tests/evaluation/test_mteb.py runs it."""
EXAMPLES = {found[0]: example_of(found[1]) for found in re.findall(r"(?ms)^### ([^\n]+)\n(.*?)(?=^### |\Z)", SECTION)}


def test_every_task_has_an_example_of_ten_lines() -> None:
    assert EXAMPLES.keys() == EXPECTED.keys() | {MTEB}
    for heading in EXPECTED:
        example = EXAMPLES[heading]
        assert example.commands, heading
        assert 3 <= example.lines <= 10, heading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: two weights files and every set."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    for seed, name in enumerate(("clip.pt", "other.pt")):
        weights(folder, seed).rename(folder / name)
    write_set(classification_set(folder / "pets"), [classification_members([*range(6)] * 5, 50)], {}, "train")
    several(folder / "voc2007_multilabel")
    retrieval_set(folder / "flickr30k")
    for make in (sugar_crepe, winoground, aro, *LAYOUTS):
        make(folder)
    labels = {name: range(12) for name in SHIFTED} | {"imagenet1k": imagenet_labels("imagenet-a")[:12]}
    for name in SHIFTED:
        files = {**PLAIN, "classnames.txt": "\n".join(conventional_classnames(Path("imagenet-r"))[:113])}
        write_set(folder / name, [classification_members(labels[name])], files if name == "objectnet" else PLAIN)
    pairs = [["a street without cars", "a street with cars"], ["a park without a dog", "a park with a dog"]]
    write_set(folder / "streets", [retrieval_members(pairs)], {"dataset_type.txt": "image_caption_selection"})
    rows = {f"m{i}": {f"{name}/acc1": 10.0 * (i + 1) for name in SHIFTED} for i in range(3)}
    tables = [
        f"[rows.{name}]\n" + "\n".join(f'"{key}" = {one}' for key, one in row.items()) for name, row in rows.items()
    ]
    (folder / "standard.toml").write_text('source = "made"\n' + "\n".join(tables))
    return folder


@pytest.mark.parametrize("heading", EXPECTED)
def test_the_example_runs(
    heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HARNESS_STORE", str(folder / "store"))
    monkeypatch.setenv("HARNESS_EVALUATION_ROOT", str(folder))
    for name, text in EXAMPLES[heading].files.items():
        (folder / name).write_text(text)
    shown = {}
    for command in EXAMPLES[heading].commands:
        words = shlex.split(command)
        monkeypatch.setattr("sys.argv", [*words, "--json"] if words[1] == "eval" else words)
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        shown[words[1]] = printed.out
        if (out := folder / "shifts.json").exists():
            of = json.loads(out.read_text())
            for one in (one for several_sets in of.values() for one in several_sets):
                one["metrics"]["acc1"]["value"] = 0.25
            out.write_text(json.dumps(of))
    found: dict[str, set[str]] = {}
    for row in json.loads(shown["eval"])["results"]:
        found.setdefault(row["set"], set()).add(row["metric"])
    for name, metrics in EXPECTED[heading].items():
        assert metrics <= found.get(name, set()), (name, found)
    if "robustness" in shown:  # an untrained model is at 0, which has no logit: 0.25 is put in its place
        assert "imagenetv2: logit = 1.000 logit(imagenet1k) +0.000, fitted to 3 models" in shown["robustness"]
        assert "left out" not in shown["robustness"]
