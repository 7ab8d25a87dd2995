"""What every miner has to fulfil, ours and yours: `harness part check` and our own tests run the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.base.part_checks import CheckFailedError, PartFinding, findings
from harness.config.mining import Mining
from harness.mining.build import Calibration, MiningRule, build_rule
from harness.mining.positives import Mined

__all__ = ["check_mining_part"]

IMAGES, WIDTH = 8, 6
Features = tuple[Tensor, Tensor, Tensor]
"""Images [N, e], captions [M, e], owner [M]."""


def check_mining_part(spec: Mining) -> Iterator[PartFinding]:
    """Check the rule of `spec` on random batches of 8 images."""
    return findings(spec, _CHECKS, (1, 3))


def _valid(spec: Mining, captions: int) -> None:
    for what, features in {"": _features(captions), " if all features are equal": _equal(captions)}.items():
        mined, (image, text, _) = _mined(spec, features), features
        for name, found, limit in (("image", mined.rows, len(image)), ("caption", mined.cols, len(text))):
            if len(found) and not 0 <= int(found.min()) <= int(found.max()) < limit:
                raise CheckFailedError(f"it names {name} {int(found.max())} of {limit}{what}")
        if len(pairs := _pairs(mined)) < len(mined.rows):
            raise CheckFailedError(f"it names {len(mined.rows) - len(pairs)} pairs twice{what}")


def _repeated(spec: Mining, captions: int) -> None:
    features, rule = _features(captions), _rule(spec)
    before = [part.clone() for part in features]
    first = _pairs(rule.mine(*features, range(IMAGES)))
    if any(not torch.equal(*parts) for parts in zip(before, features, strict=True)):
        raise CheckFailedError("it changes the features that it gets")
    for what, again in (("a second call", rule), ("the same rule, built again after a restart,", _rule(spec))):
        _same(_pairs(again.mine(*features, range(IMAGES))), first, f"{what} finds other pairs")


def _processes(spec: Mining, captions: int) -> None:
    features = _features(captions)
    halves = [_mined(spec, features, part) for part in (range(IMAGES // 2), range(IMAGES // 2, IMAGES))]
    for half in halves:
        if any(row not in half.images for row in half.rows.tolist()):
            raise CheckFailedError(f"for images {half.images.start} to {half.images.stop - 1}, it returns others")
    _same(
        _pairs(halves[0]) | _pairs(halves[1]), _pairs(_mined(spec, features)), "two processes find other pairs than one"
    )


def _permutation(spec: Mining, captions: int) -> None:
    image, text, owner = _features(captions)
    make = torch.Generator().manual_seed(2)
    rows, cols = torch.randperm(len(image), generator=make), torch.randperm(len(text), generator=make)
    moved = _mined(spec, (image[rows], text[cols], rows.argsort()[owner[cols]]))
    back = {(int(rows[row]), int(cols[col])) for row, col in _pairs(moved)}
    _same(back, _pairs(_mined(spec, (image, text, owner))), "permuting images with their captions changes the pairs")


_CHECKS: dict[str, Callable[[Mining, int], None]] = {
    "pairs are of the batch, each once": _valid,
    "a function of the features": _repeated,
    "two processes are one": _processes,
    "images may be permuted with their captions": _permutation,
}


def _features(captions: int, seed: int = 0) -> Features:
    make = torch.Generator().manual_seed(seed)
    owner = torch.arange(IMAGES * captions) // captions
    centres = torch.randn(3, WIDTH, generator=make)
    image = centres[torch.arange(IMAGES) % 3] + 0.5 * torch.randn(IMAGES, WIDTH, generator=make)
    text = centres[owner % 3] + 0.5 * torch.randn(len(owner), WIDTH, generator=make)
    return F.normalize(image, dim=1), F.normalize(text, dim=1), owner


def _equal(captions: int) -> Features:
    image, text, owner = _features(captions)
    return image[:1].expand_as(image).clone(), image[:1].expand_as(text).clone(), owner


def _rule(spec: Mining) -> MiningRule:
    rule = build_rule(spec, lambda: Calibration(*_features(3, seed=1)))
    assert isinstance(rule, MiningRule)
    return rule


def _mined(spec: Mining, features: Features, images: range = range(IMAGES)) -> Mined:
    return _rule(spec).mine(*features, images)


def _pairs(mined: Mined) -> set[tuple[int, int]]:
    return set(zip(mined.rows.tolist(), mined.cols.tolist(), strict=True))


def _same(found: set[tuple[int, int]], wanted: set[tuple[int, int]], what: str) -> None:
    if found != wanted:
        raise CheckFailedError(
            f"{what}: {len(wanted - found)} of {len(wanted)} are missing, {len(found - wanted)} are new"
        )
