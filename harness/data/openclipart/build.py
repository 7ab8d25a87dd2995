"""Making training data and evaluation sets of the package, once: rendering, measuring, splitting, captioning."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.base.files import write_json
from harness.base.log import say
from harness.config.data import OpenclipartData
from harness.data.openclipart import measured, words
from harness.data.openclipart.package import Drawing, drawings, located
from harness.data.openclipart.render import check_renderer, render, resized
from harness.data.openclipart.split import CLASSES, class_of, split
from harness.data.openclipart.words import Named, Pseudo
from harness.data.synthetic.captions import Claims
from harness.data.synthetic.layout import Sample, png, write_classification, write_retrieval, write_shards
from harness.data.synthetic.shapes import Pixels
from harness.data.synthetic.truth import TRUTH, save_keyword_truth

COUNTS = "openclipart.json"
"""What was made and what was left out, beside the shards."""
TEMPLATES = ("{c}", "a {c}", "a drawing of a {c}", "clip art of a {c}", "a picture of a {c}")
_SAMPLES_PER_SHARD = 2048


class _Drawn(NamedTuple):
    """All drawings that show something."""

    drawings: list[Drawing]
    pictures: Pixels
    """[S, H, W, 3]"""
    attributes: Claims
    """[S, A]"""
    hashes: measured.Hashes
    """[S]"""
    lexicon: list[str]
    words: Named
    """[S, W]"""


def build(data: OpenclipartData, folder: Path, package: Path | None = None) -> None:
    """Write train/, eval/openclipart/, eval/openclipart_retrieval/, the truth and `COUNTS` under `folder`.

    Args:
        package: the package's folder of drawings or its .deb file; by default where Debian installs it.

    Raises:
        DataError: the package or the renderer is missing or another version, or too few drawings are left.
    """
    begun = perf_counter()
    check_renderer()
    with located(package) as place:
        found, left_out = drawings(place, data.version)
    say(f"rendering {len(found):,} drawings of openclipart-svg {data.version}, once; this takes one to three minutes")
    drawn = _drawn(data, found)
    left_out["nothing drawn, or only text"] = len(found) - len(drawn.drawings)
    near = measured.neighbours(drawn.hashes, data.near_duplicate)
    parts = split(data, [class_of(one.keywords) for one in drawn.drawings], drawn.words, near)
    counts = _write_training(data, folder, drawn, parts.train)
    names = list(CLASSES)
    write_classification(folder / "eval" / "openclipart", drawn.pictures[parts.tested], parts.labels, names, TEMPLATES)
    described = _pseudo(data, "retrieval", drawn, parts.retrieval).texts
    write_retrieval(folder / "eval" / "openclipart_retrieval", drawn.pictures[parts.retrieval], described)
    tested = Counter(names[label] for label in parts.labels)
    write_json(
        folder / COUNTS,
        {
            "drawings": len(found),
            "left_out": {reason: count for reason, count in {**left_out, **parts.left_out}.items() if count},
            **counts,
            "tested": {"openclipart": len(parts.labels), "openclipart_retrieval": len(parts.retrieval)},
            "tested_by_class": dict(sorted(tested.items())),
            "near_duplicates_among_training": _near_in(parts.train, near),
            "seconds": round(perf_counter() - begun, 1),
        },
    )


def sentences(counts: Mapping[str, Any]) -> list[str]:
    """The file `COUNTS` in words."""
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in counts["left_out"].items())
    tested = ", ".join(f"{name} {count:,}" for name, count in counts["tested"].items())
    captions = sum(counts["captions"].values())
    return [
        f"{counts['drawings']:,} drawings: {counts['trained']:,} to train on with {captions:,} captions",
        f"tested: {tested} ({len(counts['tested_by_class'])} classes)",
        f"left out: {left_out}",
        f"{counts['near_duplicates_among_training']:,} training drawings have a near-duplicate among them",
        f"{counts['raw_captions_without_a_keyword']:,} raw captions name no keyword",
        *(
            f"{source}: {rate['wrong']:,} of {rate['named']:,} words and attributes are wrong ({rate['share']:.1%})"
            for source, rate in counts["error_rate"].items()
        ),
        f"SHA-256 of the training pictures and captions: {counts['content_sha256']}",
        f"made in {counts['seconds']:.0f} s",
    ]


def _drawn(data: OpenclipartData, found: Sequence[Drawing]) -> _Drawn:
    kept, pictures, attributes, hashes = list[Drawing](), list[Pixels](), list[tuple[int, ...]](), list[int]()
    for drawing in found:
        if (pixels := render(drawing.content)) is not None:
            kept.append(drawing)
            pictures.append(resized(pixels, data.image_size))
            attributes.append(measured.attributes(pixels))
            hashes.append(measured.perceptual_hash(pixels))
    known = words.lexicon(kept)
    return _Drawn(
        kept,
        np.stack(pictures) if pictures else np.empty((0, data.image_size, data.image_size, 3), dtype=np.uint8),
        measured.as_claims(attributes),
        np.array(hashes, dtype=np.uint64),
        known,
        words.own_words(kept, known),
    )


def _pseudo(data: OpenclipartData, source: str, drawn: _Drawn, chosen: NDArray[np.int64]) -> Pseudo:
    captioner = {"captioner": data.captioner, "captioner_b": data.captioner_b}.get(source)
    true, own = drawn.attributes[chosen], drawn.words[chosen]
    return words.describe(data.seed, source, true, own, drawn.lexicon, captioner)


def _write_training(data: OpenclipartData, folder: Path, drawn: _Drawn, chosen: NDArray[np.int64]) -> Mapping[str, Any]:
    own = [drawn.drawings[number] for number in chosen]
    raw = words.raw_captions(data.seed, own)
    pseudo = {source: _pseudo(data, source, drawn, chosen) for source in data.caption_sources()}
    samples: list[Sample] = []
    content = hashlib.sha256()
    for number, drawing in enumerate(chosen):
        texts = {source: made.texts[number] for source, made in pseudo.items()}
        members = {"txt": raw[number].encode(), "json": json.dumps(texts).encode()}
        content.update(drawn.pictures[drawing].tobytes() + members["txt"] + members["json"])
        samples.append((f"{number:09d}", {"png": png(drawn.pictures[drawing]), **members}))
    write_shards(folder / "train", samples, _SAMPLES_PER_SHARD)
    raw_words = words.named_in(raw, drawn.lexicon)
    named = {"raw": raw_words[:, None], **{source: made.words for source, made in pseudo.items()}}
    save_keyword_truth(folder / TRUTH, drawn.words[chosen], named)
    return {
        "trained": len(chosen),
        "content_sha256": content.hexdigest(),
        "captions": {"raw": len(raw), **{source: sum(map(len, made.texts)) for source, made in pseudo.items()}},
        "raw_captions_without_a_keyword": int((~raw_words.any(axis=1)).sum()),
        "words": len(drawn.lexicon),
        "error_rate": {
            source: {"named": made.named, "wrong": made.wrong, "share": round(made.wrong / max(made.named, 1), 4)}
            for source, made in pseudo.items()
        },
    }


def _near_in(chosen: NDArray[np.int64], near: Sequence[NDArray[np.int64]]) -> int:
    """How many of the drawings `chosen` have a near-duplicate among them."""
    inside = set(chosen.tolist())
    return sum(not inside.isdisjoint(near[number].tolist()) for number in chosen)
