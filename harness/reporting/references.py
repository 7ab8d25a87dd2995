"""Numbers measured by others, as references: clip-benchmark's result files, and tables of papers.

Each part of the protocol that a source does not state is marked unknown, so that a number is not mistaken for one
measured under our protocol.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from harness.base.errors import SpecError
from harness.base.files import MOST_TOML, read_text
from harness.config.ablation import Reference
from harness.runs.metrics import is_share
from harness.runs.record import EvaluationResult

PARTS = ("split", "samples", "templates", "class names", "prefix", "precision", "ties")
"""Parts of a protocol that affect a number. A paper's table states the known parts in [protocol]."""
_TASKS = ("zeroshot_classification", "zeroshot_retrieval", "image_caption_selection", "linear_probe")


_TRAINING = {
    "imagenet-zeroshot-val-top1": "imagenet1k/acc1",
    "imagenet-zeroshot-val-top5": "imagenet1k/acc5",
    "imagenetv2-zeroshot-val-top1": "imagenetv2/acc1",
    "imagenetv2-zeroshot-val-top5": "imagenetv2/acc5",
    **{f"image_to_text_R@{k}": f"val/text_retrieval_recall@{k}" for k in (1, 5, 10)},
    **{f"text_to_image_R@{k}": f"val/image_retrieval_recall@{k}" for k in (1, 5, 10)},
}
"""Our names of the metrics in open_clip_train's results.jsonl."""
_MTEB_SETS = {
    "CIFAR100ZeroShot": "cifar100",
    "CIFAR10ZeroShot": "cifar10",
    "Caltech101ZeroShot": "caltech101",
    "Country211ZeroShot": "country211",
    "DTDZeroShot": "dtd",
    "EuroSATZeroShot": "eurosat",
    "FER2013ZeroShot": "fer2013",
    "FGVCAircraftZeroShot": "fgvc_aircraft",
    "Food101ZeroShot": "food101",
    "GTSRBZeroShot": "gtsrb",
    "Imagenet1kZeroShot": "imagenet1k",
    "MNISTZeroShot": "mnist",
    "OxfordPetsZeroShot": "pets",
    "RESISC45ZeroShot": "resisc45",
    "RenderedSST2": "renderedsst2",
    "STL10ZeroShot": "stl10",
    "SUN397ZeroShot": "sun397",
    "StanfordCarsZeroShot": "cars",
    "Flickr30kI2TRetrieval": "flickr30k",
    "Flickr30kT2IRetrieval": "flickr30k",
    "MSCOCOI2TRetrieval": "mscoco_captions",
    "MSCOCOT2IRetrieval": "mscoco_captions",
    "Winoground": "winoground",
}
"""Our names of the sets of mteb's tasks; a task without one keeps its own name."""
_MTEB_PAIRS = {"accuracy": "acc", "text_acc": "text_acc", "image_acc": "image_acc"}


@dataclass(frozen=True)
class External:
    """One number measured by others."""

    row: str
    """The model: clip-benchmark's `MODEL PRETRAINED`, or the name of a table's row."""
    metric: str
    """`set/metric`, with clip-benchmark's names."""
    value: float
    """0 to 1."""
    source: str
    protocol: Mapping[str, str]
    """Value by part of PARTS. Missing parts are unknown."""

    def reference(self, arm: str) -> Reference:
        """This number as a reference for `arm`."""
        return Reference(arm=arm, metric=self.metric, value=self.value, source=self.source, protocol=self.said)

    @property
    def said(self) -> str:
        """The protocol in words, with every part named."""
        unknown = [part for part in PARTS if part not in self.protocol]
        known = [f"{part}: {self.protocol[part]}" for part in PARTS if part in self.protocol]
        return "; ".join([*known, *([f"unknown: {', '.join(unknown)}"] if unknown else [])])


def read_external(file: Path) -> list[External]:
    """The numbers in a file: those of `harness eval --out`, clip_benchmark's JSON or CSV, mteb's JSON of a task,
    open_clip_train's results.jsonl (its last epoch), or a paper's table as TOML.

    Raises:
        SpecError: the file has another format, or a number is out of range.
    """
    try:
        text = read_text(file, MOST_TOML)
        match file.suffix:
            case ".json":
                data = json.loads(text)
                found = list(_of_json(data, file))
            case ".jsonl":
                found = list(_of_training(text.splitlines(), file))
            case ".csv":
                found = [one for row in csv.DictReader(text.splitlines()) for one in _of_row(row, file)]
            case ".toml":
                found = list(_of_table(tomllib.loads(text)))
            case _:
                raise ValueError(f'"{file.suffix}" files are not known')
    except Exception as error:  # another program wrote it: anything can be in it
        what = f"is not a table of results ({type(error).__name__}: {error})"
        kinds = "the JSON of `harness eval --out`, clip_benchmark's JSON or CSV, mteb's JSON, or results.jsonl"
        fix = f"give {kinds}, or TOML with source, [protocol] and [rows.NAME]"
        raise SpecError(what, where=str(file), fix=fix) from None
    if not found:
        raise SpecError("holds no numbers", where=str(file), fix="give a file with at least one metric")
    return found


def assigned(found: Iterable[External], arms: Mapping[str, str]) -> list[Reference]:
    """References for arms. `arms` maps rows to arms; a row that it does not map keeps its own name.

    Raises:
        SpecError: two rows give a number for the same arm and metric.
    """
    known: dict[tuple[str, str], External] = {}
    references = []
    for one in found:
        arm = arms.get(one.row, arms.get("*", one.row))
        before = known.setdefault((arm, one.metric), one)
        if before is not one:
            what = f'two numbers for {one.metric} of "{arm}": of "{before.row}" ({before.source}) and of "{one.row}"'
            raise SpecError(what, where=one.source, fix='say which row is which arm: --arm "ROW=ARM"')
        references.append(one.reference(arm))
    return references


def arm_names(options: Iterable[str]) -> dict[str, str]:
    """`--arm` options as arms by row; a single `ARM` applies to every row, under `*`."""
    pairs = (option.rpartition("=") for option in options)
    return {row or "*": arm for row, _, arm in pairs}


def as_toml(references: Iterable[Reference]) -> str:
    """`[[references]]` tables to put into an ablation's file."""
    import tomlkit

    document = tomlkit.document()
    tables = tomlkit.aot()
    for one in references:
        tables.append(tomlkit.item(one.model_dump()))
    document.add("references", tables)
    return tomlkit.dumps(document)


def _of_json(data: Mapping[str, Any], file: Path) -> Iterator[External]:
    if "task_name" in data and "scores" in data:
        return _of_mteb(data, file)
    return _of_ours(data, file) if data and "metrics" not in data else _of_run(data, file)


def _of_mteb(result: Mapping[str, Any], file: Path) -> Iterator[External]:
    """A task's file of mteb, MODEL/REVISION/TASK.json: the numbers that are measured here too."""
    task, folder = str(result["task_name"]), file.absolute().parent
    row = folder.parent.name.replace("__", "/", 1) if (folder / "model_meta.json").is_file() else folder.name
    for split, subsets in result["scores"].items():
        for scores in subsets:
            subset = scores["hf_subset"]
            name = _MTEB_SETS.get(task, task) + ("" if subset == "default" else f"-{subset}")
            protocol = {"split": str(split), "ties": "as topk returns them"}
            source = f"mteb {result['mteb_version']}, {task}, {split}"
            for key, value in scores.items():
                if (metric := _metric_of_mteb(task, key, scores)) is not None:
                    yield External(row, f"{name}/{metric}", _share(value, key), source, protocol)


def _metric_of_mteb(task: str, key: str, scores: Mapping[str, Any]) -> str | None:
    """Our name of a metric of mteb; None if it is not measured here."""
    if "text_acc" in scores:
        return _MTEB_PAIRS.get(key)
    if at := re.fullmatch(r"hit_rate_at_(\d+)", key):  # recall_at_k is the share of captions that are found
        side = "text" if "I2T" in task else "image" if "T2I" in task else None
        return None if side is None else f"{side}_retrieval_recall@{at[1]}"
    return "acc1" if key == "accuracy" and "hit_rate_at_1" not in scores else None


def _of_run(run: Mapping[str, Any], file: Path) -> Iterator[External]:
    yield from _numbers(run["metrics"], run, file)


def _of_ours(results: Mapping[str, Any], file: Path) -> Iterator[External]:
    """The file that `harness eval --out` writes."""
    for row, evaluations in results.items():
        for one in map(EvaluationResult.model_validate, evaluations):
            known = {part: str(one.protocol[part]) for part in PARTS if isinstance(one.protocol.get(part), str)}
            for name, metric in one.metrics.items():
                if is_share(name):
                    source = f"harness eval, {file.name}, protocol {one.protocol_id}"
                    yield External(row, f"{one.set}/{name}", metric.value, source, known)


def _of_training(lines: Iterable[str], file: Path) -> Iterator[External]:
    """The last evaluation in open_clip_train's results.jsonl of each metric."""
    last: dict[str, tuple[float, Any]] = {}
    for line in filter(str.strip, lines):
        row = json.loads(line)
        last |= {name: (float(value), row.get("epoch")) for name, value in row.items() if name in _TRAINING}
    for name, (value, epoch) in last.items():
        source = f"open_clip_train, {file.name}, epoch {epoch}"
        known = {"templates": "80", "split": "val"} if name.startswith("imagenet") else {"split": "--val-data"}
        folder = file.absolute().parent
        run = folder.parent.name if folder.name == "checkpoints" else folder.name
        yield External(run, _TRAINING[name], _share(value, name), source, known)


def _of_row(row: Mapping[str, str], file: Path) -> Iterator[External]:
    values = {name: float(text) for name, text in row.items() if text and _is_metric(name)}
    yield from _numbers(values, row, file)


def _numbers(metrics: Mapping[str, float], about: Mapping[str, Any], file: Path) -> Iterator[External]:
    if about["task"] not in _TASKS:
        raise ValueError(f'task "{about["task"]}" is not measured here')
    name = PurePosixPath(about["dataset"]).name
    suffix = "@linear_probe" if about["task"] == "linear_probe" else ""
    # of the parts that affect these numbers, clip-benchmark records only the language
    protocol = {"ties": "as topk returns them"}
    if about.get("language", "en") != "en":
        protocol["class names"] = f"language {about['language']}"
    for metric, value in metrics.items():
        if _is_metric(metric) and value == value:  # acc5 of few classes is NaN
            yield External(
                row=f"{about['model']} {about['pretrained']}",
                metric=f"{name}{suffix}/{metric}",
                value=_share(value, metric),
                source=f"clip_benchmark, {file.name}",
                protocol=protocol,
            )


def _of_table(table: Mapping[str, Any]) -> Iterator[External]:
    if strange := sorted(table.keys() - {"source", "unit", "protocol", "rows"}):
        raise ValueError(f"it has {', '.join(strange)}; its keys are source, unit, protocol and rows")
    protocol = {str(part): str(text) for part, text in table.get("protocol", {}).items()}
    if strange := sorted(protocol.keys() - set(PARTS)):
        raise ValueError(f"[protocol] says {', '.join(strange)}; its parts are {', '.join(PARTS)}")
    divisor = {"percent": 100, "share": 1}[table.get("unit", "percent")]
    for row, numbers in table["rows"].items():
        for metric, value in numbers.items():
            if "/" not in metric:
                raise ValueError(f'"{metric}" of {row} is not a set/metric')
            yield External(row, metric, _share(value / divisor, metric), f"{table['source']}, {row}", protocol)


def _is_metric(name: str) -> bool:
    return name.removeprefix("lp_") in ("acc1", "acc5", "mean_per_class_recall", "mean_average_precision") or (
        "_retrieval_recall@" in name
    )


def _share(value: float, metric: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f'{metric} = {value} is not a share; set unit = "percent" or "share"')
    return float(value)
