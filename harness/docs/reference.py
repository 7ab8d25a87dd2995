"""docs/specs.md, written from the specs. `make generate` writes it, and the schemas with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.base.files import write_text
from harness.config.ablation import Ablation
from harness.config.declared_set import DeclaredSet
from harness.config.experiment import Experiment, flatten
from harness.config.profile import Profile
from harness.config.search import Search
from harness.docs.outputs import output_schema
from harness.docs.schema import Schema, definitions, models_in, schemas
from harness.runs.settings import Settings

_HEAD = """\
# Specs

<!-- Written by `make generate` from the models in harness/config and harness/runs: change those, not this file. -->

Experiments, ablations and searches are TOML files. The Python API uses the same models. Unknown keys are errors. If a
section has kinds, `kind = "..."` selects one, and only its fields are allowed. A path is relative to the file that
contains it. With `#:schema ../schemas/ablation.schema.json` as the first line of a file, editors that support TOML
schemas (taplo, Even Better TOML) complete and check it.

Files have three more forms. `extends = "other.toml"` starts an experiment from another experiment, or an ablation from
another ablation, so that only changes are listed; a list, such as the claims, is replaced as a whole. `[model] config`
may be the path of a JSON file. `[teacher] path = "teacher.toml"` makes another experiment the teacher.
"""

_DEFAULTS = flatten(Experiment().model_dump(mode="json"))


def generated(root: Path) -> dict[Path, str]:
    """Every generated file of the project at `root`, with its contents."""
    files = {
        f"schemas/{name}.schema.json": json.dumps(schema, indent=1, sort_keys=True) + "\n"
        for name, schema in schemas().items()
    }
    files["schemas/output.schema.json"] = json.dumps(output_schema(), indent=1, sort_keys=True) + "\n"
    files["docs/specs.md"] = reference()
    return {root / name: text for name, text in files.items()}


def reference() -> str:
    """The reference of all specs in Markdown."""
    experiment = definitions(Experiment)
    lines = [
        _HEAD,
        "## Experiment",
        "",
        *_model("Experiment", experiment),
        *_sections("", "Experiment", experiment, set()),
    ]
    for name in ("Ablation", "Reference", "Claim"):
        lines += [f"## {name}", "", *_model(name, definitions(Ablation))]
    lines += ["## Search", "", *_model("Search", definitions(Search))]
    lines += _search_sections()
    lines += ["## Cluster profile", "", *_model("Profile", definitions(Profile))]
    lines += ["### [evaluation]", "", *_model("JobResources", definitions(Profile))]
    lines += ["### [retry]", "", *_model("Retry", definitions(Profile))]
    lines += ["## Declared set", "", *_model("DeclaredSet", definitions(DeclaredSet))]
    lines += ["## harness.toml", "", *_model("Settings", definitions(Settings))]
    return "\n".join(lines)


def _search_sections() -> Iterator[str]:
    """The tables of a search file besides its experiment."""
    search, experiment = definitions(Search), definitions(Experiment)
    own = {name: search[name] for name in search if name not in experiment or name == "Search"}
    fields = {name: field for name, field in search["Search"]["properties"].items() if name != "experiment"}
    for name, field in fields.items():
        inner = field.get("additionalProperties", field.get("items", field)) if name != "base" else {}
        for one in (model for model in _models_of(inner) if model in own):
            kind = own[one]["properties"].get("kind")
            title = f'{name}.kind = "{_first_of(kind)}"' if kind else f"[{name}]"
            yield from (f"### {title}", "", *_model(one, search))


def _models_of(field: Schema) -> Iterator[str]:
    yield from models_in({**field, "anyOf": field.get("anyOf", field.get("oneOf", []))})


def _sections(prefix: str, model: str, known: dict[str, Schema], seen: set[str]) -> Iterator[str]:
    """The tables below `model`, each model once."""
    for name, field in known[model]["properties"].items():
        path = f"{prefix}{name}"
        below = [one for one in models_in(field) if one not in seen | {"Experiment"}]
        if below and (not prefix or "kind" not in known[below[0]]["properties"]):
            yield from (f"{'###' if prefix else '##'} [{path}]", "")
        for one in below:
            seen.add(one)
            if kind := known[one]["properties"].get("kind"):
                default = " (default)" if _DEFAULTS.get(f"{path}.kind") == _first_of(kind) else ""
                yield from (f'### {path}.kind = "{_first_of(kind)}"{default}', "")
            yield from _model(one, known)
            yield from _sections(f"{path}.", one, known, seen)


def _model(name: str, known: dict[str, Schema]) -> Iterator[str]:
    schema = known[name]
    yield from (schema.get("description", ""), "")
    fields = {field: value for field, value in schema["properties"].items() if field != "kind"}
    if fields:
        yield from ("| field | takes | default | meaning |", "|---|---|---|---|")
    for field, value in fields.items():
        default = (
            "required" if field in schema.get("required", ()) else _code(value["default"]) if "default" in value else ""
        )
        cells = (f"`{field}`", _takes(value, known), default, value.get("description", ""))
        yield "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"
    yield ""


def _takes(field: Schema, known: dict[str, Schema]) -> str:
    """What a field takes, in words."""
    if alternatives := field.get("anyOf", field.get("oneOf")):
        return " or ".join(_takes(one, known) for one in alternatives)
    if names := list(models_in(field)):
        return _table_of(names[0], known)
    if "const" in field or "enum" in field:
        return " or ".join(_code(one) for one in field.get("enum", [field.get("const")]))
    match field.get("type"):
        case "array":
            return f"list of {_takes(field.get('items', {}), known)}"
        case "object":
            inner = field.get("additionalProperties")
            return "table" + (f" of {_takes(inner, known)}" if isinstance(inner, dict) and inner else "")
        case "string" if "8 epochs" in field.get("examples", ()):
            return "duration"
        case "string":
            return "path" if field.get("format") == "path" else "text"
        case str(plain):
            return f"{plain}{_limits(field)}"
        case _:
            return "anything"


def _first_of(kind: Schema) -> str:
    """The value of `kind` that names a table; a published system's is a further one of the table of a sum."""
    return str(kind.get("const") or kind["enum"][0])


def _table_of(model: str, known: dict[str, Schema]) -> str:
    fields = known[model]["properties"]
    if model == "Experiment":
        return "an experiment"
    return f"kind {_code(_first_of(fields['kind']))}" if "kind" in fields else f"table of {', '.join(fields)}"


def _limits(field: Schema) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ",".join(f" {sign} {field[key]:.10g}" for key, sign in signs.items() if key in field)


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def main() -> None:
    """Write the generated files of the checkout that the working folder is."""
    for path, text in generated(Path.cwd()).items():
        write_text(path, text)


if __name__ == "__main__":
    main()
