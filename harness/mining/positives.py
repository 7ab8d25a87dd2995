"""FFF Eq. 1 on a batch: which captions are positives of which images, as a sparse list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.mining.similarity import Pairs, Tile, candidates, counted, dots, margin, passing, product, slices, tiles
from harness.mining.texts import CaptionTable, TextScores
from harness.mining.thresholds import Thresholds

IMAGE_TEXT, IMAGE_IMAGE, TEXT_TEXT, GROUND_TRUTH = 1, 2, 4, 8
"""Bits of `Mined.clause`."""
CLAUSES = {"image_text": IMAGE_TEXT, "image_image": IMAGE_IMAGE, "text_text": TEXT_TEXT}

_TILE_CPU, _TILE_GPU = 2**22, 2**26
"""Scores of a tile: 16 MB in float32 stay near a CPU's cache, 256 MB keep a GPU busy."""


@dataclass(frozen=True)
class Mined:
    """The positives of a batch, or of some of its images, sorted by image and caption, each once.

    Attributes:
        rows: images [P].
        cols: captions [P].
        clause: what found them, as bits [P] uint8: IMAGE_TEXT, IMAGE_IMAGE, TEXT_TEXT; GROUND_TRUTH marks an image's
            own captions. TEXT_TEXT is looked at, and set, only where IMAGE_TEXT does not hold.
        images: the images that were mined.
        captions: how many captions these have of their own.
    """

    rows: Tensor
    cols: Tensor
    clause: Tensor
    images: range
    captions: int

    @property
    def local_rows(self) -> Tensor:
        """`rows` counted from the first of `images` [P], as a rank counts its own images."""
        return self.rows - self.images.start

    def logs(self) -> dict[str, float]:
        """What a step logs, in one transfer from the device.

        `positives_per_image` counts all; `mined_per_image` the captions of other images; of these,
        `<clause>_hits_per_image` those that a clause found and `<clause>_only_hits_per_image` those that no other
        clause found; `ground_truth_dropped` is the share of own captions that are no positives.
        """
        bits = counted(self.clause.long(), 16).tolist()
        own, images = sum(bits[GROUND_TRUTH:]), max(1, len(self.images))
        logs = {
            "positives_per_image": sum(bits) / images,
            "mined_per_image": (sum(bits) - own) / images,
            "ground_truth_dropped": 1 - own / max(1, self.captions),
        }
        for name, bit in CLAUSES.items():
            logs[f"{name}_hits_per_image"] = sum(bits[b] for b in range(GROUND_TRUTH) if b & bit) / images
            logs[f"{name}_only_hits_per_image"] = bits[bit] / images
        return logs


def mine(
    thresholds: Thresholds,
    image: Tensor,
    text: Tensor,
    owner: Tensor,
    *,
    images: range | None = None,
    tile: int | None = None,
) -> Mined:
    """The positives of FFF Eq. 1, with at most `tile` scores alive at once.

    Args:
        thresholds: absolute thresholds and options (`resolve_thresholds`).
        image: the teacher's image features of the whole batch, unit rows [N, e], of any floating format.
        text: the teacher's features of all captions of the batch, unit rows [M, e], of the same format.
        owner: the image of every caption [M], int64.
        images: mine for these images only (a rank's share of a gathered batch); rows are still counted in the batch.
        tile: scores computed at once; never changes the result.
    """
    part = range(len(image)) if images is None else images
    batch = _Batch(thresholds, image, text, owner, tile or (_TILE_GPU if image.is_cuda else _TILE_CPU))
    with torch.no_grad():
        if len(part) == len(image):
            own = torch.arange(len(owner), device=owner.device)
        else:
            own = torch.nonzero((owner >= part.start) & (owner < part.stop)).squeeze(1)
        found = [Found(batch.own(own), GROUND_TRUTH), *batch.by_text(part), *batch.by_image(part)]
        pairs, clause = batch.merge(found)
    return Mined(pairs.rows, pairs.cols, clause, part, len(own))


class Found(NamedTuple):
    """Pairs in which a clause finds those where `keep` [P] holds, or all of them.

    Taking the others out would make the host wait for a GPU; `merge` does it once for all clauses.
    """

    pairs: Pairs
    clause: int
    keep: Tensor | None = None


class _Batch:
    """One batch and what each clause finds in it."""

    def __init__(self, thresholds: Thresholds, image: Tensor, text: Tensor, owner: Tensor, tile: int) -> None:
        self.thresholds, self.image, self.text, self.owner, self.tile = thresholds, image, text, owner, tile
        self.table = CaptionTable.of(owner, len(image))

    def own(self, captions: Tensor) -> Pairs:
        """The pairs of the ground truth that are positives whatever the clauses say."""
        pairs = Pairs(self.owner[captions], captions)
        if self.thresholds.drop_below is not None:
            return pairs.select(dots(self.image, self.text, pairs) > self.thresholds.drop_below)
        return pairs if self.thresholds.keep_ground_truth else pairs.select(captions[:0])

    def by_text(self, rows: range) -> list[Found]:
        """What the clauses on Sit and Stt find among the captions of the batch."""
        stt, captions = None, range(len(self.text))
        if self.thresholds.text_text is not None:
            stt = TextScores(self.text, self.owner, self.table, self.thresholds.text_text_reduction)
        elif self.thresholds.image_text is None:
            return []
        return [hit for tile in tiles(rows, captions, self.tile) for hit in self._in_tile(tile, stt)]

    def by_image(self, rows: range) -> list[Found]:
        """What the image_image clause finds: all captions of every image whose Sii is above p2.

        Sii is symmetric, so for a whole batch only its upper triangle is computed.
        """
        threshold, found = self.thresholds.image_image, list[Found]()
        if threshold is None:
            return []
        whole, slack = len(rows) == len(self.image), margin(self.image)
        for tile in tiles(rows, range(len(self.image)), self.tile):
            if whole and tile[1].stop <= tile[0].start:
                continue
            pairs, scores = self._candidates(self.image, self.image, threshold - slack, tile)
            keep = passing(scores, threshold, slack, pairs, lambda some: dots(self.image, self.image, some))
            if whole:
                mirrored = keep & (pairs.rows < pairs.cols)
                keep = torch.cat([keep & (pairs.rows <= pairs.cols), mirrored])
                pairs = Pairs(torch.cat([pairs.rows, pairs.cols]), torch.cat([pairs.cols, pairs.rows]))
            position, captions = self.table.expand(pairs.cols)
            found.append(Found(Pairs(pairs.rows[position], captions), IMAGE_IMAGE, keep[position]))
        return found

    def merge(self, found: list[Found]) -> tuple[Pairs, Tensor]:
        """The union of the finds, sorted, with the clauses of each pair [P] uint8."""
        # Clauses find a pair in several tiles and in any order. A pair (i, j) becomes the code i M + j, so sorting puts
        # finds of one pair side by side, by image and caption. Adding bits then equals or-ing them, because each
        # clause meets a pair in one tile only (the mirrored half of image_image has other pairs than the upper half).
        # This is `torch.unique`, less a wait for the number of pairs.
        captions = len(self.text)
        codes, order = torch.cat([one.pairs.rows * captions + one.pairs.cols for one in found]).sort()
        bits = torch.cat([_bits(one) for one in found])[order]
        is_first = torch.ones_like(codes, dtype=torch.bool)
        is_first[1:] = codes[1:] != codes[:-1]
        place = is_first.cumsum(0) - 1
        clause = torch.zeros_like(bits).index_add_(0, place, bits)[place]
        pairs = Pairs(codes // captions, codes % captions)
        keep = is_first & (clause > 0)
        own = self.owner[pairs.cols] == pairs.rows
        # TEXT_TEXT must not depend on how the clause was computed: unguarded it is looked at everywhere, guarded only
        # where image_text fails. So the bit is taken off wherever IMAGE_TEXT is set.
        clause = torch.where(clause & IMAGE_TEXT > 0, clause & ~TEXT_TEXT, clause)
        # With drop_below an own pair is a positive only if `own()` let it through, which set GROUND_TRUTH (the highest
        # bit); a clause may have found it too, and does not bring it back. All own pairs that stay get the mark.
        if self.thresholds.drop_below is not None:
            keep &= ~own | (clause >= GROUND_TRUTH)
        clause = torch.where(own, clause | GROUND_TRUTH, clause).to(torch.uint8)
        kept = torch.nonzero(keep).squeeze(1)
        return Pairs(pairs.rows[kept], pairs.cols[kept]), clause[kept]

    def _in_tile(self, tile: Tile, stt: TextScores | None) -> list[Found]:
        """The finds of image_text, and of text_text where p1' < Sit <= p1, in one tile."""
        high = self.thresholds.image_text
        guard = None if stt is None else self.thresholds.image_text_guard
        found = list[Found]()
        if stt is not None and guard is None:
            found.append(Found(self._unguarded(tile, stt), TEXT_TEXT))
        levels = [level for level in (high, guard) if level is not None]
        if not levels:
            return found
        slack = margin(self.image)
        pairs, scores = self._candidates(self.image, self.text, min(levels) - slack, tile)
        near = torch.ones_like(scores, dtype=torch.bool)
        if high is not None:
            above = passing(scores, high, slack, pairs, self._image_text)
            found.append(Found(pairs, IMAGE_TEXT, above))
            near = ~above
        if stt is not None and guard is not None:
            near &= passing(scores, guard, slack, pairs, self._image_text)
            found.append(Found(self._same_text(tile, stt, pairs.select(near)), TEXT_TEXT))
        return found

    def _same_text(self, tile: Tile, stt: TextScores, pairs: Pairs) -> Pairs:
        """Those of the candidate pairs whose Stt is above p3."""
        scores, threshold = stt.approximate(tile, pairs), self.thresholds.text_text
        assert threshold is not None
        return pairs.select(passing(scores, threshold, stt.slack, pairs, stt.exact))

    def _unguarded(self, tile: Tile, stt: TextScores) -> Pairs:
        """All pairs of the tile whose Stt is above p3, whatever their Sit."""
        threshold = self.thresholds.text_text
        assert threshold is not None
        pairs, scores = candidates(stt.dense(*slices(tile)), threshold - stt.slack, tile)
        return pairs.select(passing(scores, threshold, stt.slack, pairs, stt.exact))

    def _candidates(self, left: Tensor, right: Tensor, level: float, tile: Tile) -> tuple[Pairs, Tensor]:
        rows, columns = slices(tile)
        return candidates(product(left[rows], right[columns]), level, tile)

    def _image_text(self, pairs: Pairs) -> Tensor:
        return dots(self.image, self.text, pairs)


def _bits(found: Found) -> Tensor:
    """The bit of the clause for each pair that it finds, 0 for the others [P] int32."""
    bits = torch.full_like(found.pairs.rows, found.clause, dtype=torch.int32)
    return bits if found.keep is None else bits * found.keep
