"""Suites: named lists of evaluation sets, the metric that represents each set, and the sets' folders in mirrors.

Sources of the lists: FFF Table 1; clip-benchmark 1.6 (`vtab+`, `retrieval`); DataComp's tasklist.yml. The metric of a
set is mean per class recall on Pets, Flowers, Caltech101 and Aircraft, as in SLIP, ALIP and DataComp, and plain top-1
accuracy elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_PER_CLASS = ("pets", "flowers", "caltech101", "fgvc_aircraft")
MULTILABEL_SETS = ("voc2007_multilabel",)


@dataclass(frozen=True)
class Suite:
    """Evaluation sets that are averaged together."""

    members: tuple[str, ...]
    """References, in the form of `evaluation.sets`."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """The metric of a set in `SUITE/average`, by the set's name; acc1 for sets that are not listed."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Sets of the suite that the harness does not measure, with the reason. They prevent an average."""

    def metric(self, name: str) -> str:
        """The metric that represents the set `name` in the average."""
        return self.metrics.get(name, "acc1")


def _suite(*members: str, **elsewhere: str) -> Suite:
    names = [PurePosixPath(member).name for member in members]
    metrics = {name: "mean_per_class_recall" for name in names if name in _PER_CLASS}
    metrics |= {name: "mean_average_precision" for name in names if name in MULTILABEL_SETS}
    metrics |= {name: "mean_recall@1" for name in names if name in RETRIEVAL_SETS}
    metrics |= {name: "acc" for name in names if name in PAIR_SETS}
    return Suite(members, metrics, elsewhere)


_LONG_CAPTIONS = (
    ("image", "caption"),
    ("annotations", "photos"),
    ("densely_captioned_images/annotations", "densely_captioned_images/photos"),
)
"""Folders that sets of long captions have."""
LONG_CAPTION_SETS = ("urban1k", "docci", "iiw", "iiw-400", "dci")
RETRIEVAL_SETS = ("flickr30k", "mscoco_captions", "flickr8k")
_SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
_ARO = ("visual_genome_relation", "visual_genome_attribution")
PAIR_SETS = (*_SUGAR_CREPE, "winoground", *_ARO)
_VTAB = (
    "vtab/caltech101",
    "vtab/cifar100",
    "vtab/clevr_count_all",
    "vtab/clevr_closest_object_distance",
    "vtab/dtd",
    "vtab/eurosat",
    "vtab/kitti_closest_vehicle_distance",
    "vtab/flowers",
    "vtab/pets",
    "vtab/pcam",
    "vtab/resisc45",
    "vtab/svhn",
)
_VTAB_PLUS = (
    "vtab/cifar10",
    "vtab/diabetic_retinopathy",
    "vtab/dmlab",
    "vtab/dsprites_label_orientation",
    "vtab/dsprites_label_x_position",
    "vtab/smallnorb_label_azimuth",
    "vtab/smallnorb_label_elevation",
)
_SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")
_IMAGENETS = ("imagenet1k", *_SHIFTED)
_OTHERS = ("sun397", "cars", "fgvc_aircraft", "mnist", "stl10", "gtsrb", "country211", "renderedsst2", "voc2007")
_BY_GROUP = "its metric needs the groups of the samples"

SUITES: dict[str, Suite] = {
    "fff11": _suite(
        "cifar10",
        "cifar100",
        "food101",
        "pets",
        "flowers",
        "sun397",
        "cars",
        "dtd",
        "caltech101",
        "fgvc_aircraft",
        "imagenet1k",
    ),
    "retrieval": _suite("flickr30k", "mscoco_captions"),
    "robustness": _suite(*_SHIFTED),
    "sugar_crepe": _suite(*(f"sugar_crepe/{name}" for name in _SUGAR_CREPE)),
    "aro": _suite(*(f"aro/{name}" for name in _ARO)),
    "vtab+": _suite(*_IMAGENETS, "fer2013", "voc2007_multilabel", *_OTHERS, *_VTAB, *_VTAB_PLUS),
    "datacomp": _suite(
        *_IMAGENETS,
        "imagenet-o",
        "cifar10",
        "food101",
        *_OTHERS,
        *_VTAB,
        "wilds/camelyon17",
        "flickr30k",
        "mscoco_captions",
        winogavil="its task is an association game, not classification or retrieval",
        iwildcam="its metric is the macro F1 over all animals",
        fmow=_BY_GROUP,
        dollar_street=_BY_GROUP,
        geode=_BY_GROUP,
    ),
}


def places(reference: str) -> tuple[str, ...]:
    """Candidate folders of the set `reference`, relative to a common folder. Use the first that exists.

    Candidates are the reference itself, the same under `wds/` (clip-benchmark's name), the name of the mirror's
    repository (`wds_vtab-pets`), and that name with DataComp's `_test`. A name without `vtab/` also finds VTAB's sets.
    """
    names = [reference] if "/" in reference else [reference, f"vtab/{reference}"]
    found = []
    for name in names:
        slug = f"wds_{name.removeprefix('wds/').replace('/', '-')}"
        found += [name, f"wds/{name}", slug, f"{slug}_test"]
    return tuple(found)


def has_long_captions(path: Path) -> bool:
    """Whether the folder `path` is a set of long captions as published (`harness.evaluation.captioned`)."""
    if (path / "dataset_type.txt").is_file():
        return False
    files = any((path / name).is_file() for name in ("docci_descriptions.jsonlines", "data.jsonl"))
    folders = [(path / one).is_dir() and (path / other).is_dir() for one, other in _LONG_CAPTIONS]
    return files or any(folders)


def annotations_at(path: Path) -> Path | None:
    """The annotation file of the pair task at `path` (`harness.evaluation.pairs`), or None.

    It is `path` itself, `PATH.json`, or Winoground's examples.jsonl in the folder `path`.
    """
    beside = path.with_name(f"{path.name}.json") if path.name else path
    candidates = (beside, path / "examples.jsonl", path / "data" / "examples.jsonl")
    if path.suffix in (".json", ".jsonl") and path.is_file():
        return path
    return None if path.is_file() else next((file for file in candidates if file.is_file()), None)
