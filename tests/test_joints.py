"""Joints between a spec and the code that carries it out: none of them may fail silently.

Each union of kinds has a registry or an exhaustive match. A kind that is in the union and has no code is refused with
the product's error, wherever a part is built; a kind that leaves open what it needs is refused when it is defined.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
from PIL import Image

import harness
from harness.base.errors import SpecError
from harness.base.registry import Registry
from harness.config import augment, batches, data, experiment, loss, mining, strategy
from harness.config.base import Spec
from harness.config.experiment import Experiment
from harness.config.model import Train
from harness.config.parts import PythonPart
from harness.data import embedded_sets, inspect_data, materialise
from harness.data.dataset.dataset import open_dataset
from harness.data.dataset.transforms import augmentations, augmented
from harness.data.sources.formats import file_formats
from harness.data.sources.inspection import indexed
from harness.data.synthetic.generate import generators
from harness.losses import build_objective
from harness.losses.base import objectives
from harness.mining.build import rules
from harness.node.assemble import Assembler
from harness.node.attempt import AttemptRunner
from harness.runs.identity import teacher_id
from harness.runs.request import Request
from harness.training import Step
from harness.training import batches as training_batches
from harness.training.checkpoint import TrainingProgress
from tests.losses.arms import ARMS
from tests.training.made import attempt, train
from tests.training.made import experiment as small

PACKAGE = Path(harness.__file__).parent
UNIONS = (
    loss.Loss,
    mining.Mining,
    batches.Batches,
    augment.Augment,
    data.Data,
    experiment.Teacher,
    strategy.Sampler,
    strategy.Pruner,
)


def members(union: Any) -> set[type[Any]]:
    """The spec classes of a union that `kind` tells apart."""
    return set(get_args(get_args(union)[0]))


@pytest.mark.parametrize(
    ("union", "registry"),
    [
        (loss.Loss, objectives),
        (mining.Mining, rules),
        (batches.Batches, training_batches.orders),
        (augment.Augment, augmentations),
    ],
)
def test_every_kind_is_registered(union: Any, registry: Registry[..., Any]) -> None:
    assert registry.kinds == members(union)


def test_every_kind_of_data_is_generated_or_read() -> None:
    assert members(data.Data) == generators.kinds | file_formats.kinds | {data.MixtureData}  # which is made of these
    assert all(issubclass(kind, data.EmbeddedWorld) for kind in generators.kinds)
    assert all(issubclass(kind, data.FileSpec) for kind in file_formats.kinds)


@pytest.mark.parametrize("union", UNIONS)
def test_no_kind_is_left_out_of_its_union(union: Any) -> None:
    """A spec class with a kind whose base has kinds in the union belongs into the union too."""

    def below(base: type[Any]) -> Iterator[type[Any]]:
        for one in base.__subclasses__():
            yield one
            yield from below(one)

    bases = {base for kind in members(union) for base in kind.__mro__ if issubclass(base, Spec)} - {Spec, PythonPart}
    named = {one for base in bases for one in below(base) if "kind" in one.model_fields}
    assert {one for one in named if one.__module__.startswith("harness.")} <= members(union)


@pytest.mark.parametrize("kind", sorted(members(loss.Loss) - {loss.PythonLoss}, key=str))
def test_every_loss_has_a_formula_to_be_compared_with(kind: type[loss.LossSpec]) -> None:
    """An arm in tests/losses/arms.py, whose formula is of tests/losses/formulas.py: values and gradients in float64."""
    arms = [arm for arm in ARMS.values() if type(arm.spec) is kind]
    assert arms, f"{kind.kind_name()} is in no arm of tests/losses/arms.py"
    assert {arm.formula.__module__ for arm in arms} == {"tests.losses.formulas"}


@pytest.mark.parametrize(
    ("base", "stated", "left_open"),
    [
        (loss.LossSpec, {}, "needs_teacher, needs_tokens, uses_mining"),
        (loss.LossSpec, {"needs_teacher": False, "needs_tokens": False}, "uses_mining"),
        (mining.MiningSpec, {}, "mines, needs_teacher"),
        (batches.BatchesSpec, {}, "needs_mixture, needs_teacher"),
        (augment.AugmentSpec, {}, "is_random"),
        (data.DataSpec, {}, "evaluation_sets"),
        (strategy.PrunerSpec, {"decides_over_seeds": False}, "decides_during_training"),
    ],
)
def test_a_kind_states_what_it_needs(base: type[Spec], stated: dict[str, bool], left_open: str) -> None:
    with pytest.raises(TypeError, match=f"MadeUp has to state {left_open}: there is no default"):
        type("MadeUp", (base,), {"__annotations__": {"kind": Literal["made_up"]}, "kind": "made_up", **stated})


class MadeUpLoss(loss.LossSpec):
    """In no registry."""

    kind: Literal["made_up"] = "made_up"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True


class MadeUpMining(mining.MiningSpec):
    """In no registry."""

    kind: Literal["made_up"] = "made_up"
    mines: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False


class MadeUpBatches(batches.BatchesSpec):
    """In no registry."""

    kind: Literal["made_up"] = "made_up"
    needs_teacher: ClassVar[bool] = False
    needs_mixture: ClassVar[bool] = False


class MadeUpAugment(augment.CropAugment):
    """Of a kind that exists, and still another one."""

    kind: Literal["made_up"] = "made_up"  # type: ignore[assignment]
    is_random: ClassVar[bool] = True


class MadeUpWorld(data.ShapesData):
    """Of a kind that exists, and still another one."""

    kind: Literal["made_up"] = "made_up"  # type: ignore[assignment]


class MadeUpFiles(data.TableData):
    """Of a kind that exists, and still another one."""

    kind: Literal["made_up"] = "made_up"  # type: ignore[assignment]


class MadeUpData(data.DataSpec):
    """Neither generated nor read from files."""

    kind: Literal["made_up"] = "made_up"
    evaluation_sets: ClassVar[tuple[str, ...]] = ()

    def caption_sources(self) -> dict[str, int | None]:
        return {}


class MadeUpTeacher(Spec):
    """Known to no code."""

    kind: Literal["made_up"] = "made_up"


REFUSED = r"no code (implements|reads) [a-z.]+ = 'made_up'"


@pytest.mark.parametrize(
    ("section", "made_up", "known"),
    [
        ("loss", MadeUpLoss(), "there is code for albef, align_uniform, alip, .*supcon_out"),
        ("mining", MadeUpMining(), "there is code for none, placebo, python, threshold, truth"),
        ("train", None, "there is code for debiased, grouped, random"),
    ],
)
def test_an_unknown_kind_never_trains(tmp_path: Path, section: str, made_up: Spec | None, known: str) -> None:
    """A run whose union has taken a kind in that no code implements ends before its first step."""
    made, _, _ = attempt(tmp_path, small(train=train(1)))
    one = made.request.experiment
    part = made_up or one.train.model_copy(update={"batches": MadeUpBatches()})
    request = made.request.model_copy(update={"experiment": one.model_copy(update={section: part})})
    with pytest.raises(SpecError, match=f"{REFUSED}; {known}"):
        steps_of(made, request)
    assert len(steps_of(made, made.request)) == 1


def steps_of(made: AttemptRunner, request: Request) -> list[Step]:
    dataset = open_dataset(request.experiment.data, request.stored.data)
    trainer, _ = Assembler(request, dataset, "f", made.towers, made.world).build()
    return list(trainer.run(TrainingProgress(0, 0.0, 1)))


def test_unknown_parts_are_refused_where_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^loss: {REFUSED}"):
        build_objective(MadeUpLoss())
    with pytest.raises(SpecError, match=f"{REFUSED}; there is code for crop, declip, fff, none"):
        augmented(Image.new("RGB", (8, 8)), MadeUpAugment(), 8, [0.5] * 34)
    for use in (inspect_data, open_dataset, materialise, embedded_sets):
        with pytest.raises(SpecError, match="neither an EmbeddedWorld nor a FileSpec"):
            use(MadeUpData(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"{REFUSED}; there is code for digits, openclipart, shapes"):
        materialise(MadeUpWorld(), tmp_path)
    with pytest.raises(SpecError, match=f"{REFUSED}; there is code for table, webdataset"):
        indexed(MadeUpFiles(path="x.csv"), tmp_path)


def test_an_unknown_teacher_has_no_id() -> None:
    one = Experiment.model_construct(
        teacher=MadeUpTeacher(),  # type: ignore[arg-type]
        mining=mining.ThresholdMining(image_text=0.3),
        loss=loss.InfoNCE(),
        train=Train(),
    )
    with pytest.raises(SpecError, match=f"{REFUSED}; there is code for experiment, open_clip"):
        teacher_id(one, None)


def test_a_kind_is_registered_once() -> None:
    made: Registry[[], int] = Registry("part")
    made.register(loss.InfoNCE)(lambda spec: 1)
    with pytest.raises(TypeError, match="InfoNCE has a part builder already"):
        made.register(loss.InfoNCE)(lambda spec: 2)
    assert made(loss.InfoNCE()) == 1


def test_no_decision_names_one_kind_and_leaves_the_others_to_fall_through() -> None:
    """`isinstance(spec, Kind)` and `spec.kind == "..."` go on silently with a new kind.

    A registry, an exhaustive match (mypy's exhaustive-match) or a class variable that each kind states does not.
    """
    kinds = {kind.__name__ for union in UNIONS for kind in members(union)}
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            at = f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Call(func=ast.Name("isinstance"), args=[_, asked]):
                    named = {one.id for one in ast.walk(asked) if isinstance(one, ast.Name)} & kinds
                    found += [f"{at} isinstance of {', '.join(sorted(named))}"] if named else []
                case ast.Compare(left=ast.Attribute(attr="kind")):
                    found.append(f"{at} compares .kind")
                case ast.Match():
                    covered = {n.id for case in node.cases for n in ast.walk(case.pattern) if isinstance(n, ast.Name)}
                    last = node.cases[-1]
                    catches = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None
                    if covered & kinds and catches and not isinstance(last.body[0], ast.Raise) and not _never(last):
                        found.append(f"{at} matches {', '.join(sorted(covered & kinds))} and catches the rest")
                case _:
                    pass
    assert found == []


def _never(case: ast.match_case) -> bool:
    return "assert_never" in ast.unparse(case.body[0])
