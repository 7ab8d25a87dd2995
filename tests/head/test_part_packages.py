"""Parts that an installed package offers by entry points."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import SpecError
from harness.config import parts
from harness.config.experiment import Experiment
from harness.config.load import load
from harness.config.loss import PythonLoss
from harness.losses import build_objective
from harness.planning.workspace import Project
from harness.runs.identity import identify
from tests.head.made import BASE, is_one_sentence, write
from tests.head.own_parts import LOSS

STATED: dict[str, Any] = {"kind": "python", "package": "my_pkg", "name": "MarginLoss"}
OFFERED = "[harness.parts]\nMarginLoss = my_pkg.losses:MarginLoss\nGone = my_pkg.losses:Gone\nOdd = my_pkg:VALUE\n"


def install(site: Path, version: str = "1.2", loss: str = LOSS, offered: str = OFFERED) -> None:
    """What pip leaves of a package my_pkg with these entry points."""
    shutil.rmtree(site, ignore_errors=True)
    (site / "my_pkg").mkdir(parents=True)
    (site / "my_pkg" / "__init__.py").write_text("VALUE = 3\n")
    (site / "my_pkg" / "losses.py").write_text(loss)
    about = site / f"my_pkg-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my_pkg\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(offered)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages, for this process and those that it starts."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(parts, "_CLASSES", {})
    install(folder)
    return folder


def experiment(**loss: Any) -> Experiment:
    return Experiment.model_validate({**BASE, "loss": {**STATED, **loss}})


def id_of(one: Experiment) -> str:
    return identify(one, fingerprint="f", teacher=None).id


def test_it_is_a_loss_with_its_parameters(site: Path) -> None:
    one = experiment(margin=0.4)
    assert isinstance(one.loss, PythonLoss)
    assert (one.loss.margin, one.loss.content, one.loss.uses_mining) == (0.4, "my-pkg==1.2", True)  # type: ignore[attr-defined]
    assert "my_pkg" not in __import__("sys").modules, "the head does not import it"
    assert type(build_objective(one.loss)).__module__ == "my_pkg.losses"
    assert one.loss.science() == {"kind": "python", "name": "MarginLoss", "margin": 0.4, "content": "my-pkg==1.2"}


def test_the_id_follows_name_and_version(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = id_of(experiment())
    assert first == id_of(experiment(package="my-pkg"))
    assert first != id_of(experiment(margin=0.3))
    install(site, "1.3")
    assert first != id_of(experiment())
    install(site, "1.2", LOSS + "\n# another\n")
    assert first == id_of(experiment())


def test_another_version_on_the_node_is_refused(site: Path, tmp_path: Path) -> None:
    one = experiment()
    assert isinstance(one.loss, PythonLoss)
    assert one.loss.kept(tmp_path / "parts") is one.loss
    assert not (tmp_path / "parts").exists()
    install(site, "1.3")
    for use in (one.loss.loaded, lambda: one.loss.kept(tmp_path / "parts")):
        with pytest.raises(
            SpecError, match=r"loss: my-pkg==1.3 is installed here, and the spec was read with my-pkg==1.2"
        ):
            use()
    shutil.rmtree(site)
    with pytest.raises(SpecError, match="no package 'my_pkg' is installed here; install it, on the nodes too"):
        one.loss.loaded()


@pytest.mark.parametrize(
    ("change", "key", "said"),
    [
        ({"margn": 1}, "loss.margn", "there is no parameter 'margn' of MarginLoss; did you mean 'margin'?"),
        ({"margin": "x"}, "loss.margin", "should be a number, not 'x'"),
        ({"package": "my_pgk"}, "loss.package", "no package 'my_pgk' is installed here; install it, on the nodes too"),
        (
            {"name": "Margin"},
            "loss.name",
            "package my_pkg 1.2 offers no part 'Margin'; it offers Gone, MarginLoss, Odd",
        ),
        ({"package": "numpy"}, "loss.name", "offers no part 'MarginLoss'; it has no entry points of harness.parts"),
        ({"name": "Gone"}, "loss.package", "my_pkg.losses:Gone of my-pkg==1.2 cannot be imported: AttributeError"),
        ({"name": "Odd"}, "loss.package", "Odd of my_pkg is no class; name a class in its entry point"),
        ({"file": "x.py"}, "loss.package", "a part is in a file or in a package: remove one of them"),
        ({"package": ""}, "loss.file", "required key is missing; add it"),
        ({"package": 3}, "loss.package", "should be text in quotes, not 3"),
    ],
)
def test_mistakes_are_sentences(site: Path, tmp_path: Path, change: dict[str, Any], key: str, said: str) -> None:
    stated = {**STATED, **change}
    table = "loss = {" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in stated.items()) + "}"
    spec = write(tmp_path, {"small.toml": table, "x.py": ""})
    with pytest.raises(SpecError) as caught:
        load(spec)
    assert is_one_sentence(caught.value)
    assert f"small.toml: {key}: " in str(caught.value)
    assert said in str(caught.value)


def test_a_plan_holds_it(site: Path, tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        {
            "ablation.toml": 'question = "?"\nbaseline = "a"\nprimary = "shapes/acc1"\nseeds = 1\n'
            'experiment = "small.toml"\n[arms.a]\nloss = { kind = "python", package = "my_pkg", name = "MarginLoss" }\n'
        },
    )
    plan = Project.at(tmp_path).plan(spec, [])
    assert [run.experiment.loss.content for run in plan.runs.values()] == ["my-pkg==1.2"]  # type: ignore[union-attr]
