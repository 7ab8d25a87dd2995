"""A gallery of mined positives: one HTML file to look at before a threshold is trusted."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from harness.base.files import write_text
from harness.base.html import environment
from harness.mining.positives import CLAUSES, GROUND_TRUTH, Mined
from harness.mining.score import score
from harness.runs.gallery import Card, Gallery, MinedCaption

_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN = 24
"""Mined captions shown per image; the rest is counted."""
_LISTED = 5
"""Mined captions listed per image of a gallery."""
_SIDE = 160
"""Longest side of a picture in pixels."""


@dataclass(frozen=True)
class PreviewBatch:
    """One mined batch with what can be seen of it. Captions are untrusted text."""

    keys: Sequence[str]
    """Names of the images [N]."""
    pictures: Sequence[Image.Image]
    """The images [N]."""
    captions: Sequence[str]
    """[M]"""
    owner: npt.NDArray[np.int64]
    """The image of every caption [M]."""
    mined: Mined
    """The positives of the whole batch."""
    truth: npt.NDArray[np.bool_] | None = None
    """Which captions hold for which images [N, M], where that is known."""
    informative: npt.NDArray[np.bool_] | None = None
    """Captions that say something [M]; None: all of them."""


@dataclass(frozen=True)
class _Line:
    """A caption as a card shows it: no clauses for an image's own, no verdict where the truth is not known."""

    text: str
    image: int
    key: str
    clauses: tuple[str, ...]
    verdict: str
    dropped: bool = False


@dataclass(frozen=True)
class _Card:
    """An image with its own captions, those mined for it, and how many more were."""

    image: int
    key: str
    own: list[_Line]
    mined: list[_Line]
    more: int


@dataclass(frozen=True)
class _Section:
    """A batch: its figures, one picture per image, and the cards of the images for which mining changed something."""

    figures: list[tuple[str, str]]
    pictures: list[str]
    cards: list[_Card]
    images: int


def write_preview(path: Path, batches: Sequence[PreviewBatch], about: Mapping[str, str] | None = None) -> None:
    """Write the gallery of `batches` to `path`: one file, no scripts, nothing from the network.

    Every image for which mining added or dropped a caption gets a card: the picture, its own captions, and the mined
    ones with the clauses that found them, the image they belong to, and the truth where it is known.

    Args:
        path: the HTML file.
        batches: mined batches.
        about: what to say above them, by name (data, teacher, thresholds...).

    Raises:
        StoreError: `path` cannot be written.
    """
    sections = [_section(batch) for batch in batches]
    write_text(path, environment(_TEMPLATES).get_template("preview.html").render(about=about or {}, sections=sections))


def gallery_of(batch: PreviewBatch, most: int = 6) -> Gallery:
    """The `most` images of a batch for which mining found most, each with a few of the captions it found."""
    section = _section(batch)
    ranked = sorted(section.cards, key=lambda card: -(len(card.mined) + card.more))[:most]
    cards = tuple(
        Card(
            key=card.key,
            picture=section.pictures[card.image],
            own=tuple(line.text for line in card.own),
            mined=tuple(_mined_caption(line, section.pictures) for line in card.mined[:_LISTED]),
            more=card.more + max(len(card.mined) - _LISTED, 0),
        )
        for card in ranked
    )
    return Gallery(images=section.images, changed=len(section.cards), figures=tuple(section.figures), cards=cards)


def _mined_caption(line: _Line, pictures: Sequence[str]) -> MinedCaption:
    return MinedCaption(
        text=line.text, key=line.key, picture=pictures[line.image], clauses=line.clauses, verdict=line.verdict
    )


def _section(batch: PreviewBatch) -> _Section:
    cards = [_card(batch, image) for image in batch.mined.images]
    changed = [card for card in cards if card.mined or any(line.dropped for line in card.own)]
    pictures = [data_uri(picture) for picture in batch.pictures]
    return _Section(_figures(batch), pictures, changed, len(cards))


def _figures(batch: PreviewBatch) -> list[tuple[str, str]]:
    figures = batch.mined.logs()
    if batch.truth is not None:
        informative = np.ones(len(batch.captions), dtype=bool) if batch.informative is None else batch.informative
        arrays = (torch.from_numpy(array) for array in (batch.truth, batch.owner, informative))
        figures |= score(batch.mined, *arrays)
    return [(name.replace("_", " "), f"{value:.3g}") for name, value in figures.items()]


def _card(batch: PreviewBatch, image: int) -> _Card:
    here = (batch.mined.rows == image).numpy()
    found = dict(zip(batch.mined.cols[here].tolist(), batch.mined.clause[here].tolist(), strict=True))
    own = [_line(batch, image, column, found) for column in np.flatnonzero(batch.owner == image).tolist()]
    foreign = [column for column, bits in found.items() if bits < GROUND_TRUTH]
    mined = [_line(batch, image, column, found) for column in foreign[:_SHOWN]]
    return _Card(image, batch.keys[image], own, mined, len(foreign) - len(mined))


def _line(batch: PreviewBatch, image: int, caption: int, found: Mapping[int, int]) -> _Line:
    bits, owner = found.get(caption, 0), int(batch.owner[caption])
    clauses = tuple(name.replace("_", "-") for name, bit in CLAUSES.items() if bits & bit and owner != image)
    return _Line(
        batch.captions[caption],
        owner,
        batch.keys[owner],
        clauses,
        _verdict(batch, image, caption),
        caption not in found,
    )


def _verdict(batch: PreviewBatch, image: int, caption: int) -> str:
    if batch.truth is None:
        return ""
    if batch.informative is not None and not batch.informative[caption]:
        return "says nothing"
    return "true" if batch.truth[image, caption] else "false"


def data_uri(picture: Image.Image) -> str:
    """The picture as a data URI; small ones without loss, large ones scaled down."""
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    kind = "png" if max(small.size) <= 64 else "jpeg"
    file = io.BytesIO()
    small.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
