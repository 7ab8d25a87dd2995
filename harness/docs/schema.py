"""JSON Schemas of the TOML files as people write them, so that editors complete and check them.

They are generated from the models. What a file may say besides its model's fields is added here: parts of an
experiment with nothing required, files named by path, dotted keys, axes with the levels that their field takes.
`harness check` is stricter: it also knows what has to fit together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from harness.base.duration import Duration
from harness.config.ablation import Ablation
from harness.config.declared_set import DeclaredSet
from harness.config.experiment import Experiment
from harness.config.parts import PythonPart
from harness.config.profile import Profile
from harness.config.search import Search
from harness.runs.settings import Settings

Schema = dict[str, Any]
_REF = "#/$defs/"
_ANY_DOTTED_KEY: Schema = {r"^[a-z_]+\..+": {}}


class _Written(GenerateJsonSchema):
    """As pydantic does it, in terms of TOML: no null, durations as text, and a `kind` may come from the base."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        union = super().tagged_union_schema(schema)
        return {"anyOf": union["oneOf"]}


class _Partial(_Written):
    """Nothing is required: the rest may come from the file that is extended, or from the base of an arm."""

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ARG002
        return False


def definitions(model: type[BaseModel], generator: type[GenerateJsonSchema] = _Written) -> dict[str, Schema]:
    """The schemas of `model` and all models below it, by name."""
    schema = model.model_json_schema(schema_generator=generator)
    below: dict[str, Schema] = schema.pop("$defs", {})
    return below if model.__name__ in below else {**below, model.__name__: schema}


def schemas() -> dict[str, Schema]:
    """The schemas of the TOML files that people write, by name."""
    experiment = definitions(Experiment, _Partial)
    _allow_paths(experiment)
    profile = definitions(Profile)
    declared = definitions(DeclaredSet)["DeclaredSet"]
    return {
        "experiment": _file("experiment", {**experiment["Experiment"]["properties"], **_EXTENDS}, experiment),
        "ablation": _ablation(experiment),
        "search": _search(experiment),
        "profile": _file("profile", profile.pop("Profile")["properties"], profile),
        "settings": _file("settings", definitions(Settings)["Settings"]["properties"], {}),
        "evaluation_set": _file("evaluation_set", declared["properties"], {}, required=declared["required"]),
    }


_EXTENDS: Schema = {
    "extends": {
        "type": "string",
        "description": "A file of the same kind that this one changes. Relative to this file.",
    }
}


def _allow_paths(known: dict[str, Schema]) -> None:
    """What `harness.config.load` takes besides the models' own fields."""
    teacher = known["ExperimentTeacher"]["properties"]
    teacher["path"] = {"type": "string", "description": "The teacher's experiment file. Relative to this file."}
    config = known["Model"]["properties"]["config"]
    description = config.pop("description")
    known["Model"]["properties"]["config"] = {
        "description": description,
        "anyOf": [{"type": "string"}, config],
    }
    known["Experiment"]["patternProperties"] = _ANY_DOTTED_KEY
    for (
        part
    ) in PythonPart.__subclasses__():  # its parameters are any keys; without a kind, a table is a built-in part's
        known[part.__name__]["required"] = ["kind"]
    _allow_terms(known)


def _allow_terms(known: dict[str, Schema]) -> None:
    """The fields of a term's loss beside its weight, and terms of a published system changed by number."""
    terms = known["SumLoss"]["properties"]["terms"]
    beside = [
        {
            "type": "object",
            "properties": {key: {"$ref": f"{_REF}{name}/properties/{key}"} for key in known[name]["properties"]}
            | {"weight": {"$ref": f"{_REF}LossTerm/properties/weight"}},
            "additionalProperties": known[name]["additionalProperties"],
            "required": known[name].get("required", []),
        }
        for name in models_in(known["LossTerm"]["properties"]["loss"])
    ]
    known["WrittenTerm"] = {"anyOf": [{"$ref": f"{_REF}LossTerm"}, *beside]}
    one = {"$ref": f"{_REF}WrittenTerm"}
    changed = {"type": "object", "patternProperties": {"^[0-9]+$": one}, "additionalProperties": False}
    every = {"type": "array", "minItems": terms["minItems"], "items": one}
    known["SumLoss"]["properties"]["terms"] = {"description": terms["description"], "anyOf": [every, changed]}


_TITLES = {
    "experiment": "An experiment",
    "ablation": "An ablation",
    "search": "A search",
    "profile": "A cluster profile",
    "settings": "harness.toml",
    "evaluation_set": "A declared evaluation set",
}


def _file(name: str, properties: Schema, known: dict[str, Schema], **more: Any) -> Schema:
    title = _TITLES[name]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **more,
        **({"$defs": known} if known else {}),
    }


def _ablation(experiment: dict[str, Schema]) -> Schema:
    known = {**definitions(Ablation), **experiment}
    own = known.pop("Ablation")
    properties = dict(own["properties"])
    whole = {"$ref": f"{_REF}Experiment"}
    paths = dict(_paths("Experiment", known))
    open_tables: Schema = {_pattern(path): {} for path, levels in paths.items() if _is_open(levels)}
    replaced: dict[str, Schema] = {
        "experiment": {"anyOf": [{"type": "string"}, whole]},
        "base": whole,
        "arms": {"type": "object", "additionalProperties": whole},
        "axes": {
            "type": "object",
            "properties": {path: _levels(levels) for path, levels in paths.items()},
            "patternProperties": open_tables,
            "additionalProperties": False,
        },
    }
    for name, schema in replaced.items():
        properties[name] = {"description": own["properties"][name]["description"], **schema}
    schema = _file("ablation", {**properties, **_EXTENDS}, known)
    return {**schema, "if": {"not": {"required": ["extends"]}}, "then": {"required": own["required"]}}


def _search(experiment: dict[str, Schema]) -> Schema:
    known = {**definitions(Search), **experiment}
    own = known.pop("Search")
    properties = dict(own["properties"])
    whole = {"$ref": f"{_REF}Experiment"}
    paths = dict(_paths("Experiment", known))
    parameter = properties["space"]["additionalProperties"]
    replaced: dict[str, Schema] = {
        "experiment": {"anyOf": [{"type": "string"}, whole]},
        "base": whole,
        "space": {
            "type": "object",
            "minProperties": 1,
            "properties": dict.fromkeys(paths, parameter),
            "patternProperties": {_pattern(path): parameter for path, levels in paths.items() if _is_open(levels)},
            "additionalProperties": False,
        },
    }
    for name, schema in replaced.items():
        properties[name] = {"description": own["properties"][name]["description"], **schema}
    return _file("search", properties, known, required=own["required"])


def _paths(model: str, known: dict[str, Schema], prefix: str = "") -> Iterator[tuple[str, list[Schema]]]:
    """Every dotted path below a model with the schemas that its value may have; kinds' fields side by side."""
    found: dict[str, list[Schema]] = {}
    for name, schema in known[model]["properties"].items():
        found.setdefault(f"{prefix}{name}", []).append(schema)
        for below in models_in(schema):
            if below != "Experiment":
                for path, schemas_below in _paths(below, known, f"{prefix}{name}."):
                    found.setdefault(path, []).extend(schemas_below)
    yield from found.items()


def models_in(schema: Schema) -> Iterator[str]:
    """Names of the models that stand as alternatives in a field's schema."""
    for alternative in (schema, *schema.get("anyOf", ())):
        if alternative.get("$ref", "").startswith(_REF):
            yield alternative["$ref"].removeprefix(_REF)


def _levels(alternatives: list[Schema]) -> Schema:
    """An axis over a field: a list of values that the field takes in one of its kinds."""
    bare = [{key: value for key, value in one.items() if key not in ("description", "default")} for one in alternatives]
    different = [one for index, one in enumerate(bare) if one not in bare[:index]]
    levels = different[0] if len(different) == 1 else {"anyOf": different}
    described = next(({"description": one["description"]} for one in alternatives if "description" in one), {})
    return {**described, "type": "array", "minItems": 1, "items": levels}


def _is_open(alternatives: list[Schema]) -> bool:
    """Whether keys below a field are free (a model configuration, names of caption sources, a teacher's, terms)."""
    refs = [name for schema in alternatives for name in models_in(schema)]
    return "Experiment" in refs or any(
        one.get("additionalProperties") or "patternProperties" in one
        for schema in alternatives
        for one in (schema, *schema.get("anyOf", ()))
    )


def _pattern(path: str) -> str:
    return "^" + path.replace(".", r"\.") + r"\..+"
