"""Which drawings are tested, which are trained on, and which are left out because they resemble tested ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.errors import DataError
from harness.config.data import OpenclipartData
from harness.data.openclipart.words import Named
from harness.data.rng import stream

CLASSES: dict[str, tuple[str, ...]] = {
    "flag": ("flag",),
    "star": ("stars",),
    "computer icon": ("icons", "theme"),
    "map symbol": ("mapsym", "map_symbol"),
    "mammal": ("mammal",),
    "fruit": ("fruit",),
    "pattern": ("pattern",),
    "tool": ("tool", "tools"),
    "map": ("map", "coastline"),
    "musical instrument": ("music", "musicstuff"),
    "building": ("building", "house"),
    "drink": ("beverage",),
    "bird": ("bird",),
    "insect": ("insect",),
    "jigsaw piece": ("jigsaw",),
    "arrow": ("arrow", "arrowshape"),
    "weather": ("weather", "moon"),
    "dessert": ("dessert", "desserts", "icecream"),
    "road sign": ("roadsign",),
    "sport": ("sports",),
    "flower": ("flower",),
    "flow chart symbol": ("flowchart",),
    "toy": ("toy",),
    "speech bubble": ("callout",),
    "fish": ("fish",),
    "clock": ("clock",),
    "playing card": ("card",),
    "piece of clothing": ("clothing", "hat"),
    "book": ("book",),
    "weapon": ("weapon", "gun"),
    "dinosaur": ("dinosaur",),
    "tree": ("tree",),
    "boat": ("boat",),
    "smiley": ("smiley",),
    "stick figure": ("stickmen",),
}
"""Classes of the evaluation set `openclipart`, and the keywords of each. A drawing with keywords of two is of none."""
NONE = -1
MOST_NEIGHBOURS = 3
"""Drawings with more near-duplicates are not tested: too many would be left out of training."""
_LEAST_WORDS = 2
"""Fewer words do not tell a drawing apart, so it is not in the retrieval set."""


class SplitDrawings(NamedTuple):
    """Indices of drawings."""

    train: NDArray[np.int64]
    tested: NDArray[np.int64]
    labels: list[int]
    """The class of each of `tested`."""
    retrieval: NDArray[np.int64]
    left_out: dict[str, int]
    """Drawings in none of them, by reason."""


def class_of(keywords: Sequence[str]) -> int:
    """The number of the class that the keywords name, or NONE."""
    lower = {keyword.lower() for keyword in keywords}
    found = [number for number, named in enumerate(CLASSES.values()) if lower.intersection(named)]
    return found[0] if len(found) == 1 else NONE


def split(
    data: OpenclipartData, classes: Sequence[int], own: Named, near: Sequence[NDArray[np.int64]]
) -> SplitDrawings:
    """Draw both evaluation sets, then the training set from what resembles neither of them.

    Args:
        classes: [S] the class of each drawing, or NONE.
        own: [S, W] words of each drawing.
        near: near-duplicates of each drawing.

    Raises:
        DataError: too few drawings are left.
    """
    order = stream(data.seed, "openclipart", "split").permutation(len(classes)).tolist()
    candidates = [number for number in order if len(near[number]) <= MOST_NEIGHBOURS]
    supply = Counter(classes[number] for number in candidates)
    quota = {label: min(data.test_per_class, supply[label] // 2) for label in range(len(CLASSES))}
    taken, beside = set[int](), set[int]()
    tested, retrieval = list[int](), list[int]()
    for number in candidates:
        if number in beside:
            continue
        label = classes[number]
        if label != NONE and quota[label]:
            quota[label] -= 1
            tested.append(number)
        elif label == NONE and len(retrieval) < data.retrieval_samples and own[number].sum() >= _LEAST_WORDS:
            retrieval.append(number)
        else:
            continue
        taken.add(number)
        beside.update(near[number].tolist())
    rest = [number for number in order if number not in taken and number not in beside]
    if len(rest) < data.train_samples:
        fix = f"set it to at most {len(rest)}"
        raise DataError(f"only {len(rest):,} drawings are left to train on", where="data.train_samples", fix=fix)
    left_out = {"near-duplicate of a tested drawing": len(beside - taken), "not drawn": len(rest) - data.train_samples}
    train = np.sort(np.array(rest[: data.train_samples], dtype=np.int64))
    return SplitDrawings(train, np.array(tested), [classes[number] for number in tested], np.array(retrieval), left_out)
