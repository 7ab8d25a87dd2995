"""Learning curves for the search benchmark: tables of configurations x epochs, trained once, and made families.

    python benchmarks/search_curves.py FOLDER [NAME...]     # trains what is missing, a file for each table

A table is a grid over four settings of scikit-learn's MLP (learning rate, width, weight decay, batch size), each cell
trained for 50 epochs by `partial_fit`; its value is the validation error after every epoch. Labels of the training part
are wrong at a declared rate, as captions are: so curves turn up again, and an early value can mislead. One more
table is of this project's own runs (see `search_world`).

The made families lie outside POW3, EXP3 and LOG2: a late onset (a plateau, then a fall), crossing (fast learners end
higher), divergence (a fall, then a blow-up).

`lcdb` is real curves over the size of the training set: which of 20 learners is best on a data set of OpenML? It is one
table for each data set, and seed s of a search is on the s-th. It was first used when all strategies were finished.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import search_world
from answers import package
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]
EPOCHS = 50
LEARNING_RATES = tuple(float(10**power) for power in np.linspace(-4, 0.3, 10))
WIDTHS = (8, 24, 72, 200)
DECAYS = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
BATCHES = (25, 50, 100, 200, 400)
SHAPE = (len(LEARNING_RATES), len(WIDTHS), len(DECAYS), len(BATCHES))


@dataclass(frozen=True)
class Curves:
    """A table: `errors[a, b, ..., epoch]`, an axis for each setting, 0 to 1, lower is better."""

    name: str
    errors: Array
    is_ordered: bool = True
    """Whether the levels of a setting are numbers, rather than names."""
    budget: int = 24
    """Of a search, in full runs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Levels of each setting."""
        return self.errors.shape[:-1]

    @property
    def epochs(self) -> int:
        """Epochs of a full run."""
        return int(self.errors.shape[-1])

    @property
    def best(self) -> float:
        """The lowest error at the last epoch."""
        return float(self.errors[..., -1].min())


@dataclass(frozen=True)
class _Task:
    images: Array
    labels: NDArray[np.int64]
    training: int
    noise: float


def tasks() -> dict[str, Callable[[], _Task]]:
    """The trained tables: the first two were looked at while strategies were made, the others were held back."""
    return {
        "digits_noise20": lambda: _digits(0.2, 900),
        "digits_noise0": lambda: _digits(0.0, 500),
        "digits_noise40": lambda: _digits(0.4, 900),
        "cancer_noise15": _cancer,
        "blobs_noise10": _blobs,
    }


def _digits(noise: float, training: int) -> _Task:
    images, labels = load_digits(return_X_y=True)
    return _Task(images / 16.0, labels, training, noise)


def _cancer() -> _Task:
    features, labels = load_breast_cancer(return_X_y=True)
    return _Task(StandardScaler().fit_transform(features), labels, 280, 0.15)


def _blobs() -> _Task:
    features, labels = make_classification(
        1600, 20, n_informative=8, n_classes=5, n_clusters_per_class=2, class_sep=1.2, random_state=7
    )
    return _Task(StandardScaler().fit_transform(features), labels, 700, 0.1)


def _trained(name: str) -> Array:
    """Train a table: 1,000 classifiers for 50 epochs each."""
    warnings.simplefilter("ignore")
    task = tasks()[name]()
    generator = np.random.default_rng(0)
    order = generator.permutation(len(task.labels))
    seen, held = order[: task.training], order[task.training :]
    classes = np.unique(task.labels)
    labels = task.labels[seen].copy()
    wrong = generator.random(len(seen)) < task.noise
    labels[wrong] = generator.choice(classes, int(wrong.sum()))
    errors = np.empty((*SHAPE, EPOCHS))
    for cell in itertools.product(*map(range, SHAPE)):
        settings = LEARNING_RATES[cell[0]], WIDTHS[cell[1]], DECAYS[cell[2]], BATCHES[cell[3]]
        errors[cell] = _curve(settings, task.images[seen], labels, task.images[held], task.labels[held], classes)
    return errors


def _curve(
    settings: tuple[float, int, float, int],
    images: Array,
    labels: NDArray[np.int64],
    held: Array,
    truth: NDArray[np.int64],
    classes: NDArray[np.int64],
) -> Array:
    rate, width, decay, batch = settings
    model = MLPClassifier(
        (width,), solver="sgd", learning_rate_init=rate, alpha=decay, batch_size=batch, momentum=0.9, random_state=0
    )
    errors = np.empty(EPOCHS)
    for epoch in range(EPOCHS):
        try:
            model.partial_fit(images, labels, classes=classes)
            errors[epoch] = 1 - model.score(held, truth)
        except ValueError as error:
            if "non-finite" not in str(error):
                raise
            # it diverged, and stays where chance is
            errors[epoch:] = 1 - 1 / len(classes)
            break
    return errors


def made(family: str, seed: int = 0) -> Curves:
    """A family of curves outside POW3, EXP3 and LOG2, over a grid like that of the trained tables.

    Each cell has a quality (a smooth function of the settings) and a speed; noise of 0.004 is added to every value.
    """
    generator = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(0, 1, levels) for levels in SHAPE], indexing="ij"), -1)
    centre = generator.uniform(0.2, 0.8, 4)
    weight = np.array([3.0, 1.0, 0.6, 0.8])
    distance = ((places - centre) ** 2 * weight).sum(-1)
    final = 0.05 + 0.5 * (1 - np.exp(-2.5 * distance))
    speed = np.clip(places[..., 0] + 0.3 * (places[..., 3] - 0.5), 0, 1)
    epoch = np.arange(1, EPOCHS + 1) / EPOCHS
    final, speed = final[..., None], speed[..., None]
    match family:
        case "late_onset":  # nothing is learnt until the onset, which is late where the end is good
            onset = 0.15 + 0.55 * np.exp(-4 * distance)[..., None] * (1.2 - speed)
            errors = final + (0.9 - final) / (1 + np.exp((epoch - onset) * 25))
        case "crossing":  # who learns fast ends higher
            errors = final + 0.12 * speed + (0.85 - final) * np.exp(-epoch * (2 + 18 * speed))
        case "divergence":  # a high learning rate falls fast and blows up later
            fall = final + (0.85 - final) * np.exp(-epoch * (3 + 12 * speed))
            burst = 0.35 + 1.2 * (1 - speed)
            errors = fall + 0.7 / (1 + np.exp(-(epoch - burst) * 30)) * (speed > 0.45)
        case _:
            raise ValueError(family)
    noisy = errors + generator.normal(0, 0.004, errors.shape)
    return Curves(family, np.clip(noisy, 0, 1))


FAMILIES = ("late_onset", "crossing", "divergence")
WORLD = "world"
"""The embedded world, trained by the harness itself: see `search_world`."""


LCDB = "lcdb"
LEVELS = 20
"""Sizes of the training set, in equal steps up to the largest: the epochs of `lcdb`."""
LEARNERS = 15
ANCHORS = 12
"""Fewest learners and measured sizes of a data set."""


@cache
def lcdb() -> tuple[Curves, ...]:
    """The data sets of lcdb in the order of their numbers: test errors of learners on the first split.

    Between measured sizes, the error is interpolated over the logarithm of the size.

    Raises:
        SystemExit: the package is not installed.
    """
    columns = ["openmlid", "learner", "size_train", "outer_seed", "inner_seed", "score_test"]
    rows = pd.read_csv(package(LCDB) / "database-accuracy.csv", usecols=columns)
    rows = rows[(rows["outer_seed"] == 0) & (rows["inner_seed"] == 0)]
    found = []
    for name, part in rows.groupby("openmlid"):
        whole = part.pivot_table(index="learner", columns="size_train", values="score_test").dropna()
        if len(whole) < LEARNERS or whole.shape[1] < ANCHORS:
            continue
        sizes = whole.columns.to_numpy(dtype=np.float64)
        at = np.log(sizes[-1] * np.arange(1, LEVELS + 1) / LEVELS)
        errors = [np.interp(at, np.log(sizes), 1 - scores) for scores in whole.to_numpy(dtype=np.float64)]
        found.append(Curves(f"{LCDB} {name}", np.array(errors), is_ordered=False, budget=8))
    return tuple(found)


def names() -> tuple[str, ...]:
    """Every table but `lcdb`, whose package is no part of the harness."""
    return (*tasks(), WORLD, *FAMILIES)


def load(folder: Path, name: str, seed: int = 0) -> Curves:
    """The table of a name that a search with `seed` is on, trained first if it is missing in `folder`."""
    if name == LCDB:
        return lcdb()[seed]
    if name in FAMILIES:
        return made(name)
    file = folder / f"{name}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(file, search_world.train(folder) if name == WORLD else _trained(name))
    return Curves(name, np.load(file))


def foresight(curves: Curves) -> float:
    """Rank correlation of the errors at a quarter of the length with those at the end; NaN if all are equal."""
    quarter, end = (curves.errors[..., epoch - 1].ravel() for epoch in (round(curves.epochs / 4), curves.epochs))
    return float(stats.spearmanr(quarter, end).statistic) if np.ptp(quarter) and np.ptp(end) else float("nan")


if __name__ == "__main__":
    for one in sys.argv[2:] or names():
        tables = lcdb() if one == LCDB else [load(Path(sys.argv[1]), one)]
        best, middle, ahead = np.nanmean(
            [(each.best, float(np.median(each.errors[..., -1])), foresight(each)) for each in tables], axis=0
        )
        print(
            f"{one}: best {best:.4f}, median {middle:.4f}, rank correlation of a quarter with the end {ahead:.2f}",
            flush=True,
        )
