"""Describe a part in a user's Python file: `python -m harness.node.describe_part PART FILE NAME` prints JSON.

`package:NAME` in place of FILE is an installed package that offers the part by an entry point.

version   of the description
base      name of the built-in class that the part's parameters derive from
text      its docstring
needs     what it states: `needs_teacher` and the like, and the `task` of a metric
fields    by parameter: its JSON Schema, and its default if it has one
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from harness.base.errors import SpecError
from harness.base.part_files import PartFiles
from harness.base.part_packages import PackagedPart
from harness.config.base import Spec
from harness.config.evaluation import MetricSpec, MetricTask
from harness.config.explain import nearest
from harness.config.loss import LossSpec
from harness.config.parts import VERSION, annotation_of


def describe(part: str, file: Path, name: str) -> dict[str, Any]:
    """The description of the class `name` in `file`, of which `part` names the section.

    Raises:
        SpecError: the file cannot be imported, or has no such part; `where` is "name" if it has no such class.
    """
    module = PartFiles.read(file).load()
    made = getattr(module, name, None)
    if not isinstance(made, type):
        classes = [one.__name__ for one in found_in(module, part)]
        fix = nearest(name, classes) if classes else f"define a class that derives from {_bases(part)[0].__name__}"
        raise SpecError(f"{file.name} has no class {name!r}", where="name", fix=fix)
    return describe_class(part, made, name)


def describe_packaged(part: str, package: str, name: str) -> dict[str, Any]:
    """The description of the class that an installed package offers as `name`; raises as `describe`."""
    made = PackagedPart.find(package, name).load()
    if not isinstance(made, type):
        raise SpecError(f"{name} of {package} is no class", fix="name a class in its entry point")
    return describe_class(part, made, name)


def describe_class(part: str, made: type[Any], name: str) -> dict[str, Any]:
    """The description of a class.

    Raises:
        SpecError: it is no such part.
    """
    kind, base = _bases(part)
    if not issubclass(made, kind):
        raise _wrong(name, f"does not derive from {kind.__name__}", f"write class {name}({kind.__name__})")
    if inspect.isabstract(made):
        raise _wrong(
            name, f"does not define {', '.join(sorted(getattr(made, '__abstractmethods__', ())))}", "define it"
        )
    parameters = getattr(made, "Parameters", None)
    if not (isinstance(parameters, type) and issubclass(parameters, base)) or parameters is base:
        fix = f"write `class Parameters({base.__name__})` inside it, which states what the {part} needs"
        raise _wrong(name, f"has no class Parameters that derives from {base.__name__}", fix)
    return _description(parameters, base, name)


def found_in(module: Any, part: str) -> list[type[Any]]:
    """The classes of a module that are parts of this sort, in the order of their definition."""
    kind, _ = _bases(part)
    own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
    return [one for one in own if issubclass(one, kind) and not inspect.isabstract(one)]


def _bases(part: str) -> tuple[type[Any], type[Spec]]:
    """What a part derives from, and what its parameters derive from."""
    match part:
        case "loss":
            from harness.losses.base import Objective

            return Objective, LossSpec
        case "mining":
            from harness.config.mining import TeacherMining
            from harness.mining.build import MiningRule

            return MiningRule, TeacherMining
        case "metric":
            from harness.evaluation.own import EvaluationMetric

            return EvaluationMetric, MetricSpec
        case _:
            raise AssertionError(part)


def _description(parameters: type[Spec], base: type[Spec], name: str) -> dict[str, Any]:
    built_in = next(
        one for one in parameters.__mro__ if one.__module__.startswith("harness.") and issubclass(one, base)
    )
    if taken := {"kind", "file", "package", "name"} & parameters.model_fields.keys():
        raise _wrong(name, f"has a parameter {min(taken)!r}, which a spec uses itself", "give it another name")
    needs = sorted(base.__class_vars__ - Spec.__class_vars__)
    if base is MetricSpec:
        if not name[0].isupper():
            raise _wrong(name, "has a name that a built-in metric may get", "begin it with a capital letter")
        tasks: tuple[Any, ...] = get_args(MetricTask)
        missing = [one for one in needs if getattr(parameters, one, None) not in tasks]
        fix = f"write `task: ClassVar = ` and one of {', '.join(map(repr, tasks))} in its Parameters"
    else:
        missing = [one for one in needs if not isinstance(getattr(parameters, one, None), int | float)]
        fix = "write `{}: ClassVar[bool] = False`, or True, in its Parameters"
    if missing:
        raise _wrong(name, f"does not state {', '.join(missing)}", fix.format(missing[0]))
    return {
        "version": VERSION,
        "base": built_in.__name__,
        "text": inspect.cleandoc(parameters.__doc__ or ""),
        "needs": {one: getattr(parameters, one) for one in needs},
        "fields": dict(_fields(parameters, built_in, name)),
    }


def _fields(parameters: type[Spec], built_in: type[Spec], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    schemas = parameters.model_json_schema()["properties"]
    for field, info in parameters.model_fields.items():
        default = info.get_default(call_default_factory=True, validated_data={})
        inherited = built_in.model_fields.get(field)
        if inherited is not None and inherited.default == default:
            continue
        stated = {} if info.is_required() else {"default": default}
        try:
            annotation_of(schemas[field])
            json.dumps(stated, allow_nan=False)
        except (TypeError, ValueError):
            what = f"has a parameter {field!r} of a type that a spec cannot state"
            fix = "use numbers, text, true or false, choices (Literal), or tuples of these"
            raise _wrong(name, what, fix) from None
        yield field, {"schema": schemas[field], **stated}


def _wrong(name: str, what: str, fix: str) -> SpecError:
    return SpecError(f"{name} {what}", fix=fix)


def main() -> None:
    """Answer on stdout, with a description or a mistake; what the file prints goes to stderr."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    part, file, name = sys.argv[1:]
    try:
        package = file.removeprefix("package:")
        answer = describe(part, Path(file), name) if package == file else describe_packaged(part, package, name)
    except SpecError as error:
        answer = {"what": error.what, "fix": error.fix, "about": error.where}
    with os.fdopen(answer_to, "w") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    main()
