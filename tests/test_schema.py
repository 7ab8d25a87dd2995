"""The generated schemas and the reference of specs: current, true to the loader, and helpful about typos."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from harness.base.errors import SpecError
from harness.config.experiment import Experiment, flatten
from harness.config.load import load
from harness.docs.reference import generated
from harness.docs.schema import schemas
from harness.planning.plan import resolve_arms
from harness.runs.settings import Settings

ROOT = Path(__file__).parents[1]
SPECS = sorted([*ROOT.glob("experiments/*.toml"), *ROOT.glob("ablations/*.toml"), ROOT / "harness.toml"])
SCHEMAS = schemas()
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}
GENERATED = generated(ROOT)


def problems(name: str, text: str) -> list[str]:
    return [error.message for error in VALIDATORS[name].iter_errors(tomllib.loads(text))]


def stated_schema(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("#:schema "), f"{file} names no schema"
    stated = (file.parent / first.removeprefix("#:schema ")).resolve()
    assert stated.is_file()
    assert stated.parent == ROOT / "schemas"
    return stated.name.removesuffix(".schema.json")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_a_valid_schema(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_files_are_current(path: Path) -> None:
    assert path.is_file()
    assert path.read_text(encoding="utf-8") == GENERATED[path], "run `make generate`"


def test_the_command_writes_the_same(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "harness", "schema", "--out", str(tmp_path)], cwd=ROOT, check=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written == {path.name: text for path, text in GENERATED.items() if path.suffix == ".json"}


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_a_shipped_file_fits_the_schema_that_it_names(file: Path) -> None:
    name = stated_schema(file)
    assert name == {"experiments": "experiment", "ablations": "ablation"}.get(file.parent.name, "settings")
    assert problems(name, file.read_text(encoding="utf-8")) == []


def mistyped(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same file with one key of the models mistyped, for each key."""
    for key, value in table.items():
        rest = {other: table[other] for other in table if other != key}
        yield {**rest, f"{key}x": value}
        if isinstance(value, dict) and key not in {"axes", "labels", "arms", "pseudo", "published", "sources"}:
            yield from ({**rest, key: changed} for changed in mistyped(value))


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_any_mistyped_key_is_refused(file: Path) -> None:
    validator = VALIDATORS[stated_schema(file)]
    for table in mistyped(tomllib.loads(file.read_text(encoding="utf-8"))):
        assert not validator.is_valid(table), table


EXPERIMENT = """
captions = { source = "captioner", count = 2 }
loss = { kind = "multi_positive_sigmoid" }
mining = { kind = "threshold", image_text = 0.5 }
teacher = { path = "teacher.toml" }
"""
ABLATION = """
question = "?"
experiment = "x.toml"
baseline = "BASELINE"
primary = "shapes/acc1"
"""


def read(folder: Path, text: str, baseline: str = "a") -> None:
    """Load an ablation file and resolve its arms."""
    (folder / "x.toml").write_text(EXPERIMENT)
    (folder / "teacher.toml").write_text("seed = 1\n")
    (folder / "tower.json").write_text('{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}')
    (folder / "a.toml").write_text(text.replace("BASELINE", baseline))
    list(resolve_arms(load(folder / "a.toml"), "a.toml"))


AXES = {
    '"train.global_batch_size" = [64, 128]': "train.global_batch_size=64",
    '"mining.image_text" = [0.3, { quantile = 0.9 }]': "mining.image_text=0.3",
    '"loss.kind" = ["multi_positive_sigmoid", "supcon_out"]': "loss.kind=supcon_out",
    'loss = [{ kind = "multi_positive_sigmoid" }, { kind = "fnc", strategy = "eliminate" }]': "loss=fnc",
    '"teacher.experiment.seed" = [0, 1]': "teacher.experiment.seed=0",
    '"train.duration" = ["8 epochs", "1e6 samples"]': "train.duration=8 epochs",
    '"loss.terms.1.weight" = [0.5, 2.0]\n[base]\nmining.kind = "none"\nloss.kind = "slip"': "loss.terms.1.weight=0.5",
}


@pytest.mark.parametrize("text", AXES)
def test_schema_and_loader_accept_axes(text: str, tmp_path: Path) -> None:
    assert problems("ablation", f"{ABLATION}[axes]\n{text}") == []
    read(tmp_path, f"{ABLATION}[axes]\n{text}", AXES[text])


@pytest.mark.parametrize(
    "text",
    [
        "[arms.a]",
        "[arms.a.loss]\nlogit_scale = 20",
        "[arms.a.mining]\nimage_text = { quantile = 0.9 }",
        '[arms.a.teacher]\npath = "teacher.toml"',
        '[arms.a]\n"train.optimiser.lr" = 1e-4',
        '[base]\ndata = { kind = "webdataset", shards = "x.tar", pseudo = { captioner = "json:mine" } }\n[arms.a]',
        '[base.model]\nconfig = "tower.json"\n[arms.a]',
        '[base]\nmining.kind = "none"\n[base.loss]\nterms = [{ kind = "infonce" }, { kind = "simclr", head = "none", '
        "weight = { start = 0, end = 1, epochs = 1 } }]\n[arms.a]",
        '[base.loss]\nterms = [{ weight = 0.5, loss = { kind = "soft_target_infonce" } }]\n[arms.a]',
        '[base]\nmining.kind = "none"\n[base.loss]\nkind = "slip"\nterms.1 = { head = "none", weight = 2 }\n[arms.a]',
    ],
)
def test_schema_and_loader_accept(text: str, tmp_path: Path) -> None:
    assert problems("ablation", ABLATION + text) == []
    read(tmp_path, ABLATION + text)


@pytest.mark.parametrize(
    "text",
    [
        "[arms.a]\nlogit_scale = 1",
        '[axes]\n"train.global_batch_sise" = [64]',
        '[axes]\n"train.global_batch_size" = ["many"]',
        '[axes]\n"train.global_batch_size" = []',
        '[axes]\n"loss.kind" = ["sigmoit"]',
        '[axes]\n"train.duration" = ["8"]',
        "[arms.a.mining]\nimage_text = 1.5",
        "[arms.a.loss]\nnormaliser = 3",
        '[base.loss]\nterms = [{ kind = "infonce", weigth = 1 }]\n[arms.a]',
        '[base.loss]\nterms = [{ kind = "infonce", normaliser = 3 }]\n[arms.a]',
        '[base.loss]\nkind = "slip"\nterms.1 = { weigth = 2 }\n[arms.a]',
        '[arms.a.data]\nkind = "shape"',
        '[arms.a.train]\nduration = "eight epochs"',
        'seeds = "three"\n[arms.a]',
    ],
)
def test_schema_and_loader_refuse(text: str, tmp_path: Path) -> None:
    assert problems("ablation", ABLATION + text)
    with pytest.raises(SpecError):
        read(tmp_path, ABLATION + text)


def test_a_missing_key_is_told() -> None:
    assert problems("ablation", "[arms.a]") == [
        f"'{key}' is a required property" for key in ("question", "experiment", "baseline", "primary")
    ]


def test_every_field_is_documented() -> None:
    """A field without a docstring would be an empty cell of docs/specs.md and a blank in the editor."""

    def undocumented(node: Any, path: str) -> Iterator[str]:
        for name, field in node.get("properties", {}).items():
            if name != "kind" and "description" not in field:
                yield f"{path}.{name}"

    for name, schema in SCHEMAS.items():
        assert list(undocumented(schema, name)) == []
        for model, definition in schema.get("$defs", {}).items():
            assert list(undocumented(definition, model)) == []


def test_axes_know_every_field_of_an_experiment() -> None:
    known = SCHEMAS["ablation"]["properties"]["axes"]["properties"]
    assert set(flatten(Experiment().model_dump(mode="json"))) <= set(known)


def test_settings_are_all_in_harness_toml() -> None:
    text = (ROOT / "harness.toml").read_text(encoding="utf-8")
    for name in Settings.model_fields:
        assert f"\n# {name} = " in text
        assert f"(HARNESS_{name.upper()})" in text
