"""What two arms differ in, and whether a claim about them can be put down to one factor.

A field counts where both arms have it, it has an effect in both, and its values differ. So fields that follow by
necessity do not count: parameters that only one of two kinds has; parameters that both kinds have, each at its own
default; the teacher of an arm against an arm that uses none; the captioner of an arm against an arm without
pseudo-captions. Evaluation, resources and seed never count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from harness.base.errors import SpecError
from harness.config.ablation import Ablation, Claim, margin_size
from harness.config.base import Spec, plain
from harness.config.experiment import Experiment, flatten
from harness.config.explain import nearest
from harness.config.overrides import Table, expand, laid_over, merge
from harness.runs.metrics import is_share

Experiments = Mapping[str, Experiment]
"""By arm."""
_NEVER = {"evaluation", "resources", "seed"}
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def differing(ours: Experiment, theirs: Experiment) -> tuple[str, ...]:
    """Dotted paths of the fields that tell two experiments apart; a choice of kind is `SECTION.kind`."""
    return tuple(_differing(ours, theirs, ""))


def is_under(path: str, factor: str) -> bool:
    """Whether a dotted path is `factor` or a field of it."""
    return f"{path}.".startswith(f"{factor}.")


def common_factor(fields: tuple[str, ...]) -> str | None:
    """The field, or the part of the experiment, that holds all `fields`; None if they belong to different parts.

    Fields directly in `train` belong to different parts: batch size and duration are no one factor.
    """
    if len(fields) == 1:
        return fields[0]
    parts = [path.split(".")[:-1] for path in fields]
    shared = [names[0] for names in zip(*parts, strict=False) if len(set(names)) == 1] if parts else []
    return ".".join(shared) if shared and shared != ["train"] else None


@dataclass(frozen=True)
class Isolation:
    """A claim's two arms and what tells them apart."""

    claim: Claim
    fields: tuple[str, ...]
    """Dotted paths in which the arms differ."""

    @cached_property
    def factor(self) -> str | None:
        """What the claim is about; None for whole systems, and where the arms differ in several parts."""
        if self.claim.compares == "systems":
            return None
        return self.claim.factor or common_factor(self.fields)

    @cached_property
    def besides(self) -> tuple[str, ...]:
        """The fields that differ besides the factor: with any of them, the claim says nothing about the factor."""
        if self.claim.compares == "systems":
            return ()
        factor = self.factor
        return self.fields if factor is None else tuple(path for path in self.fields if not is_under(path, factor))

    @property
    def why_not(self) -> str:
        """Why a difference cannot be attributed, as in a verdict; empty if it can."""
        if not self.besides:
            return ""
        differ = f"{listed(self.besides)} {'differs' if len(self.besides) == 1 else 'differ'}"
        return (
            f"not attributable: {differ}" if self.factor is None else f"not attributable to {self.factor}: {differ} too"
        )


def isolation(claim: Claim, arms: Experiments) -> Isolation:
    """What tells the arms of a claim apart."""
    return Isolation(claim, differing(arms[claim.arm], arms[claim.than]))


def check_claims(ablation: Ablation, arms: Experiments, where: str) -> None:
    """Refuse claims that cannot be about what they say.

    Raises:
        SpecError: a factor names no field, or is the same in both arms; a margin does not fit its metric.
    """
    _check_margin(ablation.margin, ablation.primary, f"{where}: margin")
    for number, claim in enumerate(ablation.claims):
        place = f"{where}: claims[{number}]"
        _check_margin(claim.margin, claim.metric or ablation.primary, f"{place}.margin")
        if claim.factor is not None:
            _check_factor(isolation(claim, arms), arms, claim.factor, f"{place}.factor")


def confounded(ablation: Ablation, arms: Experiments) -> list[str]:
    """A sentence for each claim that cannot be attributed, and how to isolate it."""
    found = []
    for claim in ablation.claims:
        one = isolation(claim, arms)
        if one.besides:
            compared = f"{claim.arm!r} and {claim.than!r}"
            what = f"claim {claim.text!r} compares {compared}; its verdict will be {one.why_not!r}"
            found.append("\n".join([what, *_ways_out(ablation, arms, one)]))
    return found


def listed(fields: tuple[str, ...], most: int = 3) -> str:
    """Fields in words: `loss.kind, mining.kind and 4 more`."""
    shown = list(fields[:most]) + [f"{len(fields) - most} more"] * (len(fields) > most)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _differing(ours: Spec, theirs: Spec, prefix: str) -> Iterator[str]:
    same_kind = type(ours) is type(theirs)
    if not same_kind:
        yield f"{prefix}kind"
    passed = ours.idle() | theirs.idle() | {"kind"} | (set() if prefix else _NEVER)
    for name in type(ours).model_fields:
        if name in passed or name not in type(theirs).model_fields:
            continue
        one, other = getattr(ours, name), getattr(theirs, name)
        if plain(one, True) == plain(other, True) or not (same_kind or _is_set(ours, name) or _is_set(theirs, name)):
            continue
        if isinstance(one, Spec) and isinstance(other, Spec):
            yield from _differing(one, other, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_set(spec: Spec, name: str) -> bool:
    """Whether a field is not at its kind's default."""
    default = type(spec).model_fields[name].get_default(call_default_factory=True, validated_data={})
    return bool(plain(getattr(spec, name), True) != plain(default, True))


def _check_margin(margin: str | None, metric: str, where: str) -> None:
    if margin is None:
        return
    _, in_points = margin_size(margin)
    if in_points != is_share(metric):
        scale = (
            'a share: write "0.3 points"' if is_share(metric) else 'not a share: write a number on its scale, "0.02"'
        )
        raise SpecError(f"{margin!r} has the wrong unit", where=where, fix=f"{metric} is {scale}")


def _check_factor(found: Isolation, arms: Experiments, factor: str, where: str) -> None:
    tables = [arms[name].model_dump(mode="json") for name in (found.claim.arm, found.claim.than)]
    known = {prefix for table in tables for path in flatten(table) for prefix in _prefixes(path)}
    if factor not in known:
        raise SpecError(f"there is no field {factor!r}", where=where, fix=nearest(factor, sorted(known)))
    if not any(is_under(path, factor) for path in found.fields):
        what = f"{factor!r} is the same in {found.claim.arm!r} and {found.claim.than!r}"
        raise SpecError(what, where=where, fix=f"they differ in {listed(found.fields) or 'nothing that counts'}")


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[: number + 1]) for number in range(len(parts)))


def _ways_out(ablation: Ablation, arms: Experiments, found: Isolation) -> Iterator[str]:
    """For each factor that the claim may mean: the matched arm to compare with, as TOML to paste."""
    sections = dict.fromkeys(path.partition(".")[0] for path in found.fields)
    for factor in [found.factor] if found.factor else sections:
        yield _way_out(ablation, arms, found.claim, factor)
    yield 'or say compares = "systems" in the claim, if it is about the two arms as a whole'


def _way_out(ablation: Ablation, arms: Experiments, claim: Claim, factor: str) -> str:
    for changed, donor, side in ((claim.arm, claim.than, "than"), (claim.than, claim.arm, "arm")):
        table = _matched(ablation, arms, changed, donor, factor)
        if table is None:
            continue
        stated = f'factor = "{factor}"'
        experiment = _laid(ablation, table)
        same = (arm for arm, one in arms.items() if experiment and not differing(one, experiment))
        if (there := next(same, None)) is not None:
            return f"to isolate {factor}: {side} = {json.dumps(there)}, {stated}"
        if ablation.axes:
            return f"to isolate {factor}: an arm like {changed!r} with {_fields(table, factor)}; axes have no such cell"
        name = re.sub(r"\W+", "_", f"{changed}_{factor}_of_{donor}")
        lines = [f"[arms.{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
        lines.append(f"# and in the claim: {side} = {json.dumps(name)}, {stated}")
        return "\n".join([f"to isolate {factor}, add this arm:", *(f"    {line}" for line in lines)])
    return f"to isolate {factor}: no arm that differs in {factor} alone is a valid experiment"


def _matched(ablation: Ablation, arms: Experiments, changed: str, donor: str, factor: str) -> Table | None:
    """The table of an arm that is `changed` but for `factor`, which it has from `donor`; None if there is none."""
    declared = dict(ablation.variants())[changed]
    other, partner = arms[donor], arms[changed]
    for brief in (True, False):
        value = _at(other.model_dump(mode="json", exclude_defaults=brief, exclude_none=True), factor)
        if (
            brief
            and isinstance(value := {} if value is None else value, dict)
            and (kind := _at(other.model_dump(mode="json"), f"{factor}.kind"))
        ):
            value = {"kind": kind, **value}
        if value is None or value == {}:
            continue
        table = merge(_without(declared, factor.split(".")), expand({factor: value}))
        experiment = _laid(ablation, table)
        if experiment is None:
            continue
        fields = differing(experiment, partner)
        from_donor = not any(is_under(path, factor) for path in differing(experiment, other))
        if from_donor and fields and all(is_under(path, factor) for path in fields):
            return table
    return None


def _laid(ablation: Ablation, table: Table) -> Experiment | None:
    try:
        return laid_over(ablation.experiment, expand(ablation.base), table)
    except ValidationError:
        return None


def _without(table: Mapping[str, Any], path: list[str]) -> Table:
    first, *rest = path
    if first not in table or (rest and not isinstance(table[first], Mapping)):
        return dict(table)
    below = {**table, first: _without(table[first], rest)} if rest else {**table}
    if not rest or not below[first]:
        del below[first]
    return below


def _at(table: Any, path: str) -> Any:
    for part in path.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def _fields(table: Table, factor: str) -> str:
    return f"{factor} = {_toml(_at(table, factor))}"


def _toml(value: Any) -> str:
    """A value of JSON as TOML on one line; without None, which TOML has not."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_toml(one)}" for key, one in value.items() if one is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
