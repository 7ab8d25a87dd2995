"""Loads specs from TOML files: resolves `extends`, paths relative to the file that names them, teachers by path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from harness.base.errors import SpecError, together
from harness.base.files import DEEPEST, MOST_TOML, at_home, is_deeper, read_text, read_toml, why_not_json
from harness.config.ablation import Ablation
from harness.config.base import Spec
from harness.config.captioner import ImageCaptioner
from harness.config.data import PATH_FIELDS
from harness.config.declared_set import SUFFIX
from harness.config.evaluation import standing_metric
from harness.config.experiment import Experiment
from harness.config.explain import Problem, explain, hinted, nearest, problems, sentence
from harness.config.model import PREPROCESSING, TOKENIZER, tokenizer_of, with_tokenizer
from harness.config.overrides import Table, Whole, expand, laid_over, merge, parse_assignment
from harness.config.search import Search
from harness.config.sources import CAPTION_PATHS

ONLY_ARM = "experiment"
_ONLY_IN_ABLATIONS = Ablation.model_fields.keys() - Experiment.model_fields.keys()
WholeT = TypeVar("WholeT", Ablation, Search)
_SET = Path("--set")
"""Where a mistake in an assignment is."""
LONGEST_CHAIN = 32
"""Files that extend one another, or are one another's teachers."""
_WITH_FILES = ("data", "model", "teacher", "evaluation")
"""Sections that may name files."""
_WITH_PARTS = ("loss", "mining")
"""Sections that may name a user's Python file."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class _Place:
    """Location of a table: the folder of its relative paths, and its name in messages."""

    label: str
    folder: Path
    prefix: str = ""
    seen: tuple[Path, ...] = ()
    """Files that led here, through `extends` or as teachers."""

    @classmethod
    def of(cls, file: Path, seen: tuple[Path, ...] = ()) -> _Place:
        return cls(str(file), file.parent, seen=seen)

    def key(self, name: str) -> str:
        return f"{self.label}: {self.prefix}{name}"

    def path(self, stated: str) -> str:
        """`stated`, paths joined by `::`, relative to the folder of this file; a URL is unchanged."""
        if not re.fullmatch(r"[^\x00-\x1f\x7f]*", stated):
            raise SpecError(f"{stated!r} is no path", where=self.label, fix="remove its control characters")
        if "://" in stated:
            return stated
        return "::".join(str(self.folder.resolve() / at_home(one)) for one in stated.split("::"))

    def file(self, stated: Any, key: str, *, folder: bool = False) -> Path:
        path = self.folder / at_home(str(stated))
        if not isinstance(stated, str) or not (path.is_file() or (folder and path.is_dir())):
            raise SpecError(f"there is no file {stated!r}", where=self.key(key), fix=f"looked for {path}")
        return path


def load(path: str | Path, assignments: Sequence[str] = ()) -> Ablation:
    """Load the ablation in a TOML file, or an experiment file as an ablation with one arm.

    Args:
        path: an ablation file, which may extend another, or an experiment file.
        assignments: changes to the base experiment, like `"train.duration=300 steps"`, or to the ablation itself, like
            `"seeds=5"`. Paths in them are relative to the working folder.

    Raises:
        SpecError: the file, or a file that it names, is missing or not valid.
    """
    file = Path(path)
    stated = _read(file)
    if _is_ablation(file, stated):
        table, base = _ablation_table(file, stated, seen=())
        return _changed(Ablation, file, table, base, assignments)
    experiment = load_experiment(file)
    sets = experiment.evaluation.sets
    primary = standing_metric(sets[0]) if sets else "train/loss"
    ablation: Table = {"question": f"How does {file.stem} do?", "baseline": ONLY_ARM, "primary": primary}
    ablation |= {"arms": {ONLY_ARM: {}}, "seeds": (experiment.seed,)}
    return _changed(Ablation, file, ablation, experiment, assignments)


def is_search(path: str | Path) -> bool:
    """Whether a TOML file declares a search rather than an ablation or an experiment.

    Raises:
        SpecError: the file is missing or not valid TOML.
    """
    return "space" in _read(Path(path))


def load_search(path: str | Path, assignments: Sequence[str] = ()) -> Search:
    """Load the search in a TOML file.

    Args:
        path: a file with a `[space]`.
        assignments: changes to the base experiment, like `"train.duration=300 steps"`, or to the search itself, like
            `"budget.trials=20"`.

    Raises:
        SpecError: the file, or a file that it names, is missing or not valid.
    """
    file = Path(path)
    table = _read(file)
    if "space" not in table:
        raise SpecError("has no [space]", where=str(file), fix="name the fields to search; see docs/search.md")
    place = _Place.of(file)
    base = _base_experiment(place, table.pop("experiment", None))
    if isinstance(table.get("base"), dict):
        table["base"] = _located(replace(place, prefix="base."), table["base"])
    space = _tables(table.get("space"))
    _refuse_files_in_axes(place, {name: parameter.get("of") for name, parameter in space.items()})
    return _changed(Search, file, table, base, assignments)


def load_captioner_spec(path: Path) -> ImageCaptioner:
    """Load the captioner in a TOML file. Folders, checkpoints and a configuration that it names are relative to it.

    Raises:
        SpecError: the file is missing or not valid.
    """
    place, table = _Place.of(path), dict(_read(path))
    for field in ("model", "weights"):
        if isinstance(stated := table.get(field), str) and Path(place.path(stated)).exists():
            table[field] = place.path(stated)
    if isinstance(stated := table.get("config"), str):
        table["config"] = dict(model_config(place.file(stated, "config")))
    try:
        return ImageCaptioner.model_validate(table)
    except ValidationError as error:
        raise explain(error, ImageCaptioner, where=str(path)) from None


def load_experiment(path: str | Path) -> Experiment:
    """Load the experiment in a TOML file.

    Raises:
        SpecError: the file, or a file that it names, is missing or not valid.
    """
    file = Path(path)
    return _experiment(file, _experiment_table(file, seen=()))


def _experiment(file: Path, table: Table) -> Experiment:
    try:
        return Experiment.model_validate(table)
    except ValidationError as error:
        raise explain(error, Experiment, where=str(file)) from None


def _experiment_table(file: Path, seen: tuple[Path, ...]) -> Table:
    """The tables of an experiment file merged over those of the files that it extends, with absolute paths."""
    place = _Place.of(file, _longer(seen, file))
    table = _read(file)
    if "question" in table:
        fix = "name the experiment that it starts from"
        raise SpecError("is an ablation, but an experiment is needed", where=str(file), fix=fix)
    base: Table = {}
    if "extends" in table:
        parent = place.file(table.pop("extends"), "extends")
        base = _experiment_table(parent, place.seen)
        _experiment(parent, base)
    try:
        return merge(base, _located(place, table))
    except SpecError as error:
        raise together([error, *_besides(file, merge(base, expand(table)))]) from None


def _longer(seen: tuple[Path, ...], file: Path) -> tuple[Path, ...]:
    """`seen` with `file`, which must not be there yet."""
    if file.resolve() in seen:
        raise SpecError("extends itself, or its teacher is itself", where=str(file), fix="break the circle")
    if len(seen) >= LONGEST_CHAIN:
        raise SpecError(f"is the end of a chain of more than {LONGEST_CHAIN} files", where=str(file), fix="shorten it")
    return (*seen, file.resolve())


def _besides(file: Path, table: Table) -> Iterator[SpecError]:
    """What else is wrong with an experiment that names files that cannot be read: unknown keys, and other sections."""
    try:
        Experiment.model_validate(table)
    except ValidationError as error:
        for problem in problems(error, Experiment):
            section = problem.key.partition(".")[0]
            if section != "teacher" and (problem.unknown_key or section not in (*_WITH_FILES, *_WITH_PARTS, "")):
                yield sentence(problem, where=str(file))


@contextmanager
def _gathering(wrong: list[SpecError]) -> Iterator[None]:
    """Go on after a mistake, and keep it."""
    try:
        yield
    except SpecError as error:
        wrong.append(error)


def _is_ablation(file: Path, table: Table) -> bool:
    """Whether a file, which holds `table`, declares an ablation, itself or through the files that it extends."""
    for _ in range(LONGEST_CHAIN):
        if _ONLY_IN_ABLATIONS & table.keys():
            return True
        if "extends" not in table:
            return False
        file = _Place.of(file).file(table["extends"], "extends")
        table = _read(file)
    return False


def _ablation_table(file: Path, table: Table, seen: tuple[Path, ...]) -> tuple[Table, Experiment]:
    """The `table` of an ablation file merged over those of the ablations that it extends, with absolute paths; and the
    base experiment.
    """
    place, wrong = _Place.of(file, _longer(seen, file)), list[SpecError]()
    parent, base = Table(), None
    if "extends" in table:
        extended = place.file(table.pop("extends"), "extends")
        above = _read(extended)
        if not _is_ablation(extended, above):
            fix = f'write experiment = "{extended.name}"'
            raise SpecError("an ablation extends an experiment", where=place.key("extends"), fix=fix)
        parent, base = _ablation_table(extended, above, place.seen)
        _validated(Ablation, extended, parent, base)
    with _gathering(wrong):
        if base is None or "experiment" in table:
            base = _base_experiment(place, table.pop("experiment", None))
    for name, arm in _tables(table.get("arms")).items():
        with _gathering(wrong):
            table["arms"][name] = _located(replace(place, prefix=f"arms.{name}."), arm)
    if isinstance(table.get("base"), dict):
        with _gathering(wrong):
            table["base"] = _located(replace(place, prefix="base."), table["base"])
    with _gathering(wrong):
        _refuse_files_in_axes(place, table.get("axes"))
    if wrong or base is None:
        raise together(wrong)
    return merge(parent, table), base


def _base_experiment(place: _Place, stated: Any) -> Experiment:
    """The base experiment of a file: another file's, or a table in this file."""
    if isinstance(stated, str):
        return load_experiment(place.file(stated, "experiment"))
    if isinstance(stated, dict):
        return _experiment(Path(place.label), _located(replace(place, prefix="experiment."), stated))
    fix = 'name one: experiment = "../experiments/shapes.toml"'
    raise SpecError("required key is missing", where=f"{place.label}: experiment", fix=fix)


def _changed(model: type[WholeT], file: Path, table: Table, base: Experiment, assignments: Sequence[str]) -> WholeT:
    """The ablation or search in `file`, changed by assignments; a mistake is blamed on what made it."""
    found = _validated(model, file, table, base)
    own, others = _own(assignments, model)
    known = _tables(table.get("arms"))
    for name in _tables(own.get("arms")):
        if name not in known:
            fix = f"{nearest(name, known)} New arms are declared in the file"
            raise SpecError("there is no such arm", where=f"--set: arms.{name}", fix=fix)
    if own:
        table = merge(table, own)
        found = _validated(model, _SET, table, base)
    changes = _assigned(others, base, found.base, model)
    return _validated(model, file, {**table, "base": merge(found.base, changes)}, base) if changes else found


def _validated(model: type[WholeT], file: Path, table: Table, base: Experiment) -> WholeT:
    try:
        return model.model_validate({**table, "experiment": base})
    except ValidationError as error:
        raise explain(error, model, where=str(file)) from None


def _own(assignments: Sequence[str], model: type[Spec]) -> tuple[Table, list[str]]:
    """The assignments to keys of an ablation or search itself, as a table, and those to its base experiment, which has
    the other names, and `seed`.

    Raises:
        SpecError: an assignment has no value, or replaces the base experiment.
    """
    changes, others = Table(), list[str]()
    for text in assignments:
        path, value = parse_assignment(text)
        key = path.partition(".")[0]
        if key in ("experiment", "base"):
            fix = "name the field of the experiment by itself, like train.duration"
            raise SpecError("the base experiment cannot be replaced", where=f"--set: {path}", fix=fix)
        if key in model.model_fields.keys() - Experiment.model_fields.keys():
            changes = merge(changes, expand({path: value}))
        else:
            others.append(text)
    place = _Place(str(_SET), Path.cwd())
    for name, arm in _tables(changes.get("arms")).items():
        changes["arms"][name] = _located(replace(place, prefix=f"arms.{name}."), arm)
    _refuse_files_in_axes(place, changes.get("axes"))
    return changes, others


def _assigned(assignments: Sequence[str], base: Experiment, shared: Table, model: type[Spec]) -> Table:
    """The assignments to the base experiment of a `model`, merged into one table.

    Raises:
        SpecError: an assignment has no value, or is not valid for the base experiment.
    """
    parsed = [parse_assignment(text) for text in assignments]
    changes: Table = {}
    for path, value in parsed:
        changes = merge(changes, _located(_Place("--set", Path.cwd()), {path: value}))
    try:
        laid_over(base, shared, changes)
    except ValidationError as error:
        for problem in problems(error, Experiment):
            if any(_concerns(problem, path) for path, _ in parsed):
                raise sentence(hinted(problem, model), where="--set") from None
    return changes


def _concerns(problem: Problem, path: str) -> bool:
    """Whether the value at `path` causes the problem by itself, not in combination with others."""
    above = problem.unknown_key and path.startswith(f"{problem.path}.")
    return above or problem.path == path or problem.path.startswith(f"{path}.")


def _located(place: _Place, table: Table) -> Table:
    """An experiment's tables, complete or partial, with absolute paths and with named files read in."""
    located, wrong = expand(table), list[SpecError]()
    for section in _WITH_FILES:
        if section in located and not isinstance(located[section], dict):
            wrong.append(SpecError("is not a table", where=place.key(section), fix=f"write [{section}] and its keys"))
            del located[section]
    if "data" in located:
        located["data"] = _data(place, located["data"])
    for section in ("model", "teacher"):
        config = located.get(section, {}).get("config")
        if isinstance(config, str):
            with _gathering(wrong):
                content = Whole(model_config(place.file(config, f"{section}.config")))
                located[section] = {**located[section], "config": content}
        elif isinstance(config, dict):
            with _gathering(wrong):
                located[section] = {**located[section], "config": _with_tokenizer(place, config, f"{section}.config.")}
        weights = located.get(section, {}).get("weights")
        if isinstance(weights, str) and _is_path(weights, place.folder):
            with _gathering(wrong):
                file = place.file(weights, f"{section}.weights", folder=True)
                located[section] = {**located[section], "weights": str(file.resolve())}
    for section in _WITH_PARTS:
        if section in located:
            with _gathering(wrong):
                located[section] = _part(place, located[section], section)
    if isinstance(metrics := located.get("evaluation", {}).get("metrics"), list):
        with _gathering(wrong):
            found = [_part(place, one, f"evaluation.metrics[{number}]") for number, one in enumerate(metrics)]
            located["evaluation"] = {**located["evaluation"], "metrics": found}
    if isinstance(loss := located.get("loss"), dict) and isinstance(terms := loss.get("terms"), list):
        with _gathering(wrong):
            located["loss"] = {**loss, "terms": [_term(place, term) for term in terms]}
    if "path" in located.get("teacher", {}):
        with _gathering(wrong):
            located["teacher"] = _teacher(place, located["teacher"])
    if isinstance(sets := located.get("evaluation", {}).get("sets"), list):
        located["evaluation"] = {**located["evaluation"], "sets": [_set(place, name) for name in sets]}
    if wrong:
        raise together(wrong)
    return located


def _data(place: _Place, data: Table) -> Table:
    """A table of data, and the sources of a mixture, with absolute paths."""
    found: Table = {field: place.path(data[field]) for field in PATH_FIELDS if isinstance(data.get(field), str)}
    if isinstance(sources := data.get("pseudo"), dict):
        found["pseudo"] = {name: _caption_files(place, source) for name, source in sources.items()}
    if isinstance(mixed := data.get("sources"), dict):
        found["sources"] = {
            name: {**one, "data": _data(place, one["data"])}
            if isinstance(one, dict) and isinstance(one.get("data"), dict)
            else one
            for name, one in mixed.items()
        }
    return {**data, **found}


def _part(place: _Place, part: Any, key: str) -> Any:
    """A part that may be a user's own, with the absolute path of its file."""
    if not isinstance(part, dict) or "file" not in part:
        return part
    return {**part, "file": str(place.file(part["file"], f"{key}.file").resolve())}


def _term(place: _Place, term: Any) -> Any:
    """A term of a loss; if it is in a Python file, with the absolute path of that."""
    if isinstance(term, dict) and isinstance(loss := term.get("loss"), dict):
        return {**term, "loss": _term(place, loss)}
    return _part(place, term, "loss.terms")


def _is_path(weights: str, folder: Path) -> bool:
    """Whether `weights` is a path and no tag of open_clip."""
    stated = "/" in weights or weights.startswith((".", "~")) or weights.endswith(_CHECKPOINTS)
    return stated or (folder / weights).exists()


def _caption_files(place: _Place, source: Any) -> Any:
    """A source of pseudo-captions; if it is made of files, with absolute paths."""
    if not isinstance(source, dict):
        return source
    paths = {field: place.path(source[field]) for field in CAPTION_PATHS if isinstance(source.get(field), str)}
    return {**source, **paths}


def _teacher(place: _Place, table: Table) -> Table:
    """A teacher given by its experiment file. It inherits nothing from the teacher that it replaces."""
    file = place.file(table["path"], "teacher.path")
    nested = _experiment_table(file, place.seen)
    _experiment(file, nested)
    others = {key: value for key, value in table.items() if key != "path"}
    return Whole(merge({"kind": "experiment", "experiment": nested}, others))


def _set(place: _Place, name: Any) -> Any:
    """An evaluation set's name unchanged, or the absolute path of its folder or file."""
    if not isinstance(name, str):
        return name
    is_nested = "/" in name or name.endswith(SUFFIX)
    is_path = name.startswith((".", "/", "~")) or (is_nested and Path(place.path(name)).exists())
    return place.path(name) if is_path else name


def _refuse_files_in_axes(place: _Place, axes: Any) -> None:
    """Refuse levels that name files: an arm's name holds its levels, and must not depend on a file's location."""
    for path, levels in axes.items() if isinstance(axes, dict) else ():
        for level in levels if isinstance(levels, list) else ():
            if isinstance(level, str | list | dict) and _located(
                replace(place, prefix="axes."), {path: level}
            ) != expand({path: level}):
                fix = "give each file its own arm: [arms.NAME]"
                raise SpecError("levels cannot name files", where=place.key(f"axes.{path}"), fix=fix)


def _tables(stated: Any) -> dict[str, Table]:
    tables = stated if isinstance(stated, dict) else {}
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def _read(file: Path) -> Table:
    if file.suffix.lower() in (".yaml", ".yml") and file.is_file():
        fix = "`harness init` writes one to start from, and docs/specs.md lists its fields"
        raise SpecError("is YAML, but specs are TOML files", where=str(file), fix=fix)
    return read_toml(file, SpecError, "`harness examples` lists and copies shipped files")


def model_config(file: Path) -> Table:
    """The architecture in a JSON file: open_clip's model configuration, alone or as in open_clip_config.json. A
    tokenizer's folder in it is relative to the file; a tokenizer beside an open_clip_config.json is the model's.

    Raises:
        SpecError: the file is not JSON, or no architecture.
    """
    try:
        config = json.loads(read_text(file, MOST_TOML))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read ({why_not_json(error)})"
        raise SpecError(what, where=str(file), fix="give an open_clip model config") from None
    is_folder = isinstance(config, dict) and isinstance(config.get("model_cfg"), dict)
    if is_folder and not is_deeper(config, DEEPEST):
        stated = {PREPROCESSING: config[PREPROCESSING]} if PREPROCESSING in config else {}
        config = {**config["model_cfg"], **stated}
    if (
        is_deeper(config, DEEPEST)
        or not isinstance(config, dict)
        or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys()
    ):
        raise SpecError(
            "has no embed_dim, vision_cfg and text_cfg", where=str(file), fix="see open_clip's model_configs"
        )
    if is_folder and any((file.parent / name).is_file() for name in _TOKENIZERS):
        config = with_tokenizer(config, str(file.parent.resolve()))
    return _with_tokenizer(_Place.of(file), config)


def _with_tokenizer(place: _Place, config: Table, prefix: str = "") -> Table:
    """A model configuration whose tokenizer, if it is a folder, has an absolute path."""
    if (name := tokenizer_of(config)) is None:
        return config
    folder = place.folder / at_home(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            where = place.key(f"{prefix}text_cfg.{TOKENIZER}")
            raise SpecError(f"there is no folder {name!r}", where=where, fix=f"looked for {folder}")
        return config
    return with_tokenizer(config, str(folder.resolve()))
