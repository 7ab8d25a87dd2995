"""A miner of one's own, for own_parts.toml; `harness part new mining` writes this file."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from harness.mining import Calibration, PairRule, TeacherMining


class NearestMining(PairRule):
    """The captions of other images that the teacher finds nearest to an image become its positives too."""

    class Parameters(TeacherMining):
        """What a spec can set."""

        count: int = Field(1, ge=0)
        """Captions to add for each image."""
        floor: float = Field(0.25, ge=-1, le=1)
        """Captions under this similarity are never added."""

    def __init__(self, spec: Parameters, calibration: Callable[[], Calibration]) -> None:  # noqa: ARG002
        """`calibration()` returns the teacher's features of a fixed sample of the data, to set thresholds on."""
        self.count, self.floor = spec.count, spec.floor

    def pairs(self, image: Tensor, text: Tensor, owner: Tensor, images: range) -> tuple[Tensor, Tensor]:
        """Rows and captions of the pairs to add for `images`; features are unit rows of the whole batch."""
        rows = torch.arange(images.start, images.stop, device=image.device)
        similarity = image[rows].float() @ text.float().T  # [images, captions]
        similarity[owner[None, :] == rows[:, None]] = -torch.inf  # own captions are positives already
        found, captions = similarity.topk(min(self.count, len(text)))
        kept = found > self.floor
        return rows[:, None].expand_as(captions)[kept], captions[kept]

    def logs(self) -> dict[str, float]:
        """Values to log at each step."""
        return {"mining_floor": self.floor}
