"""A loss in a user's Python file, as specs, ids, stores and the command see it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.base.errors import SpecError, StoreError
from harness.base.part_files import PartFiles
from harness.base.version import PACKAGE
from harness.config import parts
from harness.config.experiment import Experiment
from harness.config.load import load, load_search
from harness.config.loss import PythonLoss
from harness.config.parts import parts_of
from harness.planning.isolation import differing
from harness.runs.identity import identify
from harness.runs.request import Request, read_request
from harness.runs.settings import Settings
from harness.runs.store import Store
from tests.head.made import BASE, is_one_sentence, plan_of, write
from tests.head.own_parts import HELPED, LOSS, METRIC, MINER, in_this_process, written
from tests.head.test_cli_light import LOADED, harness

__all__ = ["in_this_process"]
pytestmark = pytest.mark.usefixtures("in_this_process")
OWN = """
question = "Does the margin matter?"
experiment = "small.toml"
baseline = "loss.margin=0.1"
primary = "shapes/acc1"
[base]
loss = { kind = "python", file = "my_loss.py", name = "MarginLoss" }
[axes]
"loss.margin" = [0.1, 0.2]
"""


def experiment(loss: dict[str, Any]) -> Experiment:
    return Experiment.model_validate({**BASE, "loss": loss})


def id_of(loss: dict[str, Any]) -> str:
    return identify(experiment(loss), fingerprint="f", teacher=None).id


def test_parameters_are_swept_and_searched(tmp_path: Path) -> None:
    written(tmp_path)
    spec = write(tmp_path, {"ablation.toml": OWN})
    plan = plan_of(load(spec))
    assert [arm.experiment.loss.margin for arm in plan.arms] == [0.1, 0.2]  # type: ignore[union-attr]
    assert plan.differences("loss.margin=0.2") == {"loss.margin": (0.1, 0.2)}
    first, second = plan.experiments.values()
    assert differing(first, second) == ("loss.margin",)
    (tmp_path / "search.toml").write_text(
        OWN.replace('baseline = "loss.margin=0.1"\nprimary = "shapes/acc1"', 'objectives = [{metric = "shapes/acc1"}]')
        .replace("[axes]\n", "[budget]\ntrials = 2\n[space]\n")
        .replace("[0.1, 0.2]", "{ kind = 'float', low = 0.0, high = 1.0 }")
    )
    assert load_search(tmp_path / "search.toml").configured({"loss.margin": 0.5}).loss.margin == 0.5  # type: ignore[union-attr]


def test_the_id_follows_content_and_parameters_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    loss = written(tmp_path, HELPED, helpers="FACTOR = 1.0\n")
    before = id_of(loss)
    assert id_of(written(tmp_path / "elsewhere", HELPED, helpers="FACTOR = 1.0\n")) == before
    assert id_of({**loss, "margin": 0.2}) == before, "a default"
    assert id_of({**loss, "margin": 0.3}) != before
    assert id_of(written(tmp_path, HELPED, helpers="FACTOR = 2.0\n")) != before, "a module beside it"
    assert id_of(written(tmp_path, HELPED + "\n# edited", helpers="FACTOR = 1.0\n")) != before
    assert id_of(written(tmp_path, HELPED, helpers="FACTOR = 1.0\n", unrelated="")) == before


def test_what_is_beside_it_is_found_through_packages(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, text in {
        "__init__": "",
        "a": "from .b import X\nimport json",
        "b": "import deep\nX = 1",
        "c": "",
    }.items():
        (tmp_path / "mine" / f"{name}.py").write_text(text)
    written(tmp_path, "from mine import a", deep="")
    found = PartFiles.read(tmp_path / "my_loss.py").contents
    assert list(found) == ["deep.py", "mine/__init__.py", "mine/a.py", "mine/b.py", "my_loss.py"]


def test_a_miner_is_a_part_too(tmp_path: Path) -> None:
    loss, miner = written(tmp_path), {"kind": "python", "file": str(tmp_path / "m.py"), "name": "NearestMining"}
    (tmp_path / "m.py").write_text(MINER)
    with pytest.raises(ValidationError, match=r"mining.kind = \"python\" needs a \[teacher\]"):
        Experiment.model_validate({"loss": loss, "mining": miner})
    one, other = (Experiment.model_validate({**BASE, "loss": loss, "mining": {**miner, "count": n}}) for n in (1, 2))
    assert [part.label for part in parts_of(one)] == ["NearestMining", "MarginLoss"]
    assert differing(one, other) == ("mining.count",)
    silent = written(
        tmp_path, LOSS.replace("uses_mining: ClassVar[bool] = True", "uses_mining: ClassVar[bool] = False")
    )
    with pytest.raises(ValidationError, match="MarginLoss does not use mined positives"):
        Experiment.model_validate({**BASE, "loss": silent, "mining": miner})
    for part in ({"loss": miner}, {"mining": loss}):
        with pytest.raises(ValidationError, match=r"does not derive from (Objective|MiningRule)"):
            Experiment.model_validate({**BASE, **part})


def test_the_example_is_the_templates() -> None:
    examples = PACKAGE.parent / "examples"
    for name, template in {"my_loss.py": LOSS, "my_miner.py": MINER, "my_metric.py": METRIC}.items():
        assert (examples / name).read_text().partition("\n")[2] == template.partition("\n")[2]
    plan = plan_of(load(examples / "own_parts.toml"), samples=1024)
    assert [arm.experiment.loss.label for arm in plan.arms] == ["infonce", "MarginLoss", "MarginLoss", "MarginLoss"]
    assert plan.differences("wide")["loss.margin"] == (None, 0.4)


def test_two_parts_may_have_modules_of_one_name(tmp_path: Path) -> None:
    factors = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, HELPED, helpers=f"FACTOR = '{name}'")
        factors.append(PartFiles.read(tmp_path / name / "my_loss.py").load().FACTOR)
    assert factors == ["one", "two"]
    assert not any(str(tmp_path) in entry for entry in sys.path)


def test_objects_are_tables_again(tmp_path: Path) -> None:
    one = experiment({**written(tmp_path), "margin": 0.3, "max_logit_scale": "off"})
    assert Experiment.model_validate(one.model_dump(mode="json")) == one
    assert pickle.loads(pickle.dumps(one)).loss == one.loss
    assert one.model_dump(exclude_defaults=True)["loss"].keys() == {"file", "name", "margin", "max_logit_scale"}
    assert one.loss.science() == {
        "kind": "python", "name": "MarginLoss", "margin": 0.3, "max_logit_scale": None, "content": one.loss.content,  # type: ignore[union-attr]
    }  # fmt: skip
    with pytest.raises(TypeError, match="write PythonLoss"):
        PythonLoss(file="my_loss.py", name="MarginLoss")


@pytest.mark.parametrize(
    ("change", "file", "key", "said"),
    [
        ({"margn": 1}, LOSS, "loss.margn", "there is no parameter 'margn' of MarginLoss; did you mean 'margin'?"),
        ({"margin": "x"}, LOSS, "loss.margin", "should be a number, not 'x'"),
        ({"margin": -1}, LOSS, "loss.margin", "should be greater than or equal to 0, not -1"),
        ({"name": "Margin"}, LOSS, "loss.name", "my_loss.py has no class 'Margin'; did you mean 'MarginLoss'?"),
        ({"name": "a b"}, LOSS, "loss.name", "'a b' is not the name of a class"),
        ({"name": 1}, LOSS, "loss.name", "should be text in quotes, not 1"),
        ({}, "x = 1\nimport torhc\n", "loss.file", "line 2 (import torhc): ModuleNotFoundError: No module"),
        ({}, "def f(:\n", "loss.file", "is not valid Python: my_loss.py, line 1 (def f(:): invalid syntax"),
        ({}, "raise SystemExit(3)\n", "loss.file", "line 1 (raise SystemExit(3)): SystemExit: 3"),
        ({}, "class MarginLoss: pass\n", "loss.file", "MarginLoss does not derive from Objective"),
        ({}, LOSS.replace("def _terms", "def terms"), "loss.file", "MarginLoss does not define _terms"),
        ({}, LOSS.replace("Parameters(", "Settings("), "loss.file", "has no class Parameters that derives from"),
        ({}, LOSS.replace("uses_mining: ", "mining: "), "loss.file", "does not state uses_mining"),
        ({}, LOSS.replace("margin: float = ", "margin: dict[str, int] = "), "loss.file", "of a type that a spec"),
        ({}, LOSS.replace("margin: float", "name: float"), "loss.file", "has a parameter 'name', which a spec uses"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(tmp_path: Path, change: dict[str, Any], file: str, key: str, said: str) -> None:
    stated = {**written(tmp_path, file.replace("spec: Parameters", "spec: LossSpec")), **change}
    spec = write(
        tmp_path, {"small.toml": "loss = {" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in stated.items()) + "}"}
    )
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert is_one_sentence(caught.value)
    assert f"small.toml: {key}: " in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_file_and_levels_that_name_files_are_refused(tmp_path: Path) -> None:
    spec = write(tmp_path, {"ablation.toml": OWN})
    with pytest.raises(SpecError, match=r"ablation.toml: base.loss.file: there is no file 'my_loss.py'; looked for"):
        load(spec)
    written(tmp_path)
    spec.write_text(OWN.replace('"loss.margin" = [0.1, 0.2]', 'loss = [{kind="python", file="my_loss.py", name="M"}]'))
    with pytest.raises(SpecError, match="levels cannot name files"):
        load(spec)


def test_every_type_of_parameter(tmp_path: Path) -> None:
    fields = """margin: float = Field(0.2, ge=0)
        count: int = Field(gt=1)
        mode: Literal["a", "b"] = "a"
        flag: bool = False
        steps: tuple[float, ...] = (1.0, 2.0)
        pair: tuple[int, str] = (1, "x")
        bound: float | Literal["off"] = "off"
        text: str | None = None
        logit_scale: float = 5.0"""
    text = LOSS.replace("import ClassVar", "import ClassVar, Literal").replace(
        "margin: float = Field(0.2, ge=0)", fields
    )
    stated = written(tmp_path, text)
    with pytest.raises(ValidationError, match="count"):
        experiment(stated)
    made = dict(experiment({**stated, "count": 2, "steps": [3], "bound": 0.5}).loss)
    wanted = {"count": 2, "mode": "a", "flag": False, "steps": (3.0,), "pair": (1, "x"), "bound": 0.5, "text": None}
    assert wanted.items() <= made.items()
    assert made["logit_scale"] == 5.0, "its own default of a built-in parameter"
    for wrong in ({"count": 1}, {"count": 2.5}, {"mode": "c"}, {"flag": "x"}, {"steps": ["x"]}, {"bound": "on"}):
        with pytest.raises(ValidationError):
            experiment({**stated, "count": 2, **wrong})


def test_it_may_build_on_a_loss_for_one_caption(tmp_path: Path) -> None:
    text = LOSS.replace("(LossSpec)", "(SquareLossSpec)").replace(
        "from harness.losses", "from harness.config.loss import SquareLossSpec\nfrom harness.losses", 1
    )
    stated = written(tmp_path, text)
    with pytest.raises(ValidationError, match="MarginLoss takes one caption per image, not 4"):
        Experiment.model_validate({"loss": stated, "captions": {"source": "captioner", "count": 3, "mixing": "all"}})
    assert experiment({**stated, "slotwise": True}).loss.slotwise is True  # type: ignore[union-attr]


def kept(tmp_path: Path, loss: dict[str, Any], run: str = "r") -> Request:
    return Request.of(experiment(loss), run, None, Settings(store=tmp_path / "store"), 1)


def test_a_run_keeps_its_part(tmp_path: Path) -> None:
    loss = {**written(tmp_path, HELPED, helpers="FACTOR = 1.0\n"), "margin": 0.3}
    request, folder = kept(tmp_path, loss), Store(tmp_path / "store").run("r")
    (part,) = parts_of(request.experiment)
    assert Path(part.file) == folder.parts / part.content / "my_loss.py"
    for name in ("my_loss.py", "helpers.py"):
        assert (folder.parts / part.content / name).read_bytes() == (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
    folder.request.write_text(json.dumps(request.written()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_CLASSES", {})
        patch.setattr(parts, "_ask", None)  # the description travels with the files
        assert read_request(folder).written() == request.written()
    assert kept(tmp_path, dict(request.experiment.loss)).experiment == request.experiment, "asked for again"
    assert identify(request.experiment, fingerprint="f", teacher=None).payload["loss"]["content"] == part.content


def test_a_teachers_part_is_kept_too(tmp_path: Path) -> None:
    teacher = {"kind": "experiment", "experiment": {"loss": written(tmp_path)}}
    one = Experiment.model_validate(
        {"teacher": teacher, "mining": {"kind": "threshold", "image_text": 0.3}, "loss": {"kind": "supcon_out"}}
    )
    request = Request.of(one, "r", "t", Settings(store=tmp_path / "store"), 1)
    assert [Path(part.file).parents[1] for part in parts_of(request.experiment)] == [
        Store(tmp_path / "store").run("r").parts
    ]


def test_a_changed_copy_is_refused_with_the_difference(tmp_path: Path) -> None:
    loss = written(tmp_path)
    request, folder = kept(tmp_path, loss), Store(tmp_path / "store").run("r")
    (part,) = parts_of(request.experiment)
    Path(part.file).write_text(LOSS.replace("Field(0.2", "Field(0.7"))
    with pytest.raises(
        StoreError, match=r"my_loss.py: was changed since .*Field\(0.2.*Field\(0.7.*an edited part makes new"
    ) as caught:
        kept(tmp_path, loss)
    assert is_one_sentence(caught.value)
    folder.request.write_text(json.dumps(request.written()))
    changed = identify(read_request(folder).experiment, fingerprint="f", teacher=None)
    assert changed.id != identify(request.experiment, fingerprint="f", teacher=None).id, "a node refuses it"
    Path(part.file).unlink()
    with pytest.raises(StoreError, match="there is no such file") as caught:
        read_request(folder)
    assert is_one_sentence(caught.value)


def test_an_edit_between_plan_and_run_is_noticed(tmp_path: Path) -> None:
    one = experiment(written(tmp_path))
    written(tmp_path, LOSS + "\n# edited")
    with pytest.raises(SpecError, match="was changed since the spec was read"):
        Request.of(one, "r", None, Settings(store=tmp_path / "store"), 1)
    with pytest.raises(SpecError, match="was changed since the spec was read"):
        next(parts_of(one)).loaded()


def test_it_is_described_once_for_a_content_and_the_head_stays_light(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, LOSS + "\nprint('from the part')\n")
    spec = write(tmp_path, {"ablation.toml": OWN})
    monkeypatch.undo()  # a process of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_CLASSES", {})
        load(spec)
    assert list((tmp_path / "__pycache__").glob("my_loss.MarginLoss.loss-*.json"))
    command = [sys.executable, "-c", LOADED, "check", "--quick", spec.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not {"torch", "numpy"} & set(json.loads(done.stderr.splitlines()[-1])[1])


def test_a_process_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ValidationError, match=r"ended the process that imported it \(status 3"):
        experiment(written(tmp_path, "import os\nos._exit(3)\n"))


def test_the_command_writes_and_checks_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    assert harness(capsys, "part", "new", "loss", file)[0] == 0
    assert file.read_text() == LOSS
    code, _, err = harness(capsys, "part", "new", "loss", file)
    assert (code, f"{file}: exists already" in err) == (2, True)
    code, out, _ = harness(capsys, "part", "check", file, "--set", "margin=0.5")
    assert (code, out.count("  ok "), "FAILED" in out) == (0, 8, False)
    file.write_text(LOSS.replace('"hinge": violations.sum()', '"hinge": violations.sum().detach()'))
    code, out, _ = harness(capsys, "part", "check", file)
    assert (code, "FAILED  gradients are those of its value: its gradient along a direction of image is 0" in out) == (
        1,
        True,
    )
    assert harness(capsys, "part", "new", "mining", tmp_path / "miner.py")[0] == 0
    code, out, _ = harness(capsys, "part", "check", tmp_path / "miner.py", "--name", "NearestMining")
    assert (code, out.count("  ok ")) == (0, 4)
    code, out, _ = harness(capsys, "part", "new", "metric", tmp_path / "metric.py")
    assert (code, 'evaluation.metrics = [{ kind = "python", file = "metric.py"' in out) == (0, True)
    code, out, _ = harness(capsys, "part", "check", tmp_path / "metric.py", "--set", "depth=1")
    assert (code, out.count("  ok ")) == (0, 3)
    file.write_text("x = 1\n")
    code, _, err = harness(capsys, "part", "check", file)
    assert (code, "mine.py: has no part; `harness part new` writes one" in err) == (2, True)
