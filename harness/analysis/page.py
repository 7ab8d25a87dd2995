"""The analysis as one HTML file without scripts or network access, and its numbers as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from harness.analysis.analyse import Analysis, OfSource
from harness.analysis.measures import Floats
from harness.analysis.plots import figures
from harness.base.errors import DataError
from harness.base.files import write_json, write_text
from harness.data.dataset.dataset import Dataset
from harness.features.dedup import RAW_NAME
from harness.mining.preview import data_uri
from harness.reporting.formats.page import templates

_TEMPLATES = Path(__file__).parent / "templates"
_NEAR = (0.9, 0.95, 0.98)


def write_page(path: Path, found: Analysis, dataset: Dataset, title: str) -> None:
    """Write the page to `path` and the numbers to the JSON file of the same name.

    Raises:
        StoreError: they cannot be written.
    """
    told = numbers(found)
    drawn = [(one, Markup(one.svg)) for one in figures(found)]  # made by this code, its text escaped: see report.svg
    text = (
        templates(_TEMPLATES)
        .get_template("analysis.html")
        .render(
            title=title,
            told=told,
            figures=drawn,
            sources=found.sources,
            **_galleries(found, dataset),
        )
    )
    write_text(path, text)
    write_json(path.with_suffix(".json"), told)


def numbers(found: Analysis) -> dict[str, Any]:
    """Everything except pictures and texts, as JSON data."""
    return {
        "samples": found.samples,
        "queries": found.options.queries,
        "seed": found.options.seed,
        "images": {"nearest_other": _told(found.near_images), "share_above": _above(found.near_images)},
        "sources": {name: _source(one) for name, one in found.sources.items()},
    }


def _source(one: OfSource) -> dict[str, Any]:
    return {
        "captions": one.captions,
        "distinct": one.distinct,
        "similarity_to_100_nearest": _told(one.nearest),
        "image_to_one_caption": _told(one.single),
        "image_to_mean_of_captions": _told(one.mean),
        "among_captions_of_one_image": _told(one.within),
        "most_common": [int(count) for count in one.frequencies],
        "rank_of_true_caption": _told(one.ranks.astype(np.float64)) | {"first": float(np.mean(one.ranks == 1))},
        "nearest_other_text": _told(one.near),
        "texts_share_above": _above(one.near),
        "thresholds_at_quantile": {f"{level:g}": values for level, values in one.quantiles.items()},
        "share_above_fff_thresholds": one.passing,
    }


def _told(values: Floats) -> dict[str, float]:
    if not len(values):
        return {}
    levels = {f"p{level}": float(np.percentile(values, level)) for level in (5, 50, 95)}
    return {"mean": float(values.mean()), "count": len(values), **levels}


def _above(values: Floats) -> dict[str, float]:
    return {f"{level:g}": float(np.mean(values > level)) for level in _NEAR} if len(values) else {}


def _galleries(found: Analysis, dataset: Dataset) -> dict[str, Any]:
    shown = _Shown(dataset)
    pseudo = [name for name in found.sources if name != RAW_NAME]
    return {
        "twins": [(shown.picture(one), shown.picture(two), similarity) for one, two, similarity in found.twins],
        "worst": [
            (shown.picture(sample), dataset.raw(sample), [dataset.pseudo(name, sample)[0] for name in pseudo], value)
            for sample, value in found.worst
        ],
        "ahead": {
            name: [(shown.picture(sample), own, others) for sample, own, others in one.ahead]
            for name, one in found.sources.items()
        },
    }


class _Shown:
    """Pictures and keys of samples."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def picture(self, sample: int) -> tuple[str, str]:
        """A data URI (empty if the image is damaged) and the key."""
        (key,) = self._dataset.keys_of([sample])
        try:
            return data_uri(self._dataset.image(sample)), key
        except DataError:
            return "", key
