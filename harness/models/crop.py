"""The evaluation transform of a model with images that are resized to more than the size of its centre crop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from open_clip.transform import CenterCropOrPad, PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose  # type: ignore[import-untyped]

from harness.base.errors import ModelError


def resized_first(preprocess: Mapping[str, Any], resize: int) -> Callable[[Image.Image], Tensor]:
    """open_clip's evaluation transform, with images resized to `resize` pixels before the centre crop.

    FFF's teacher sees images resized to 256 and cropped to 224 (Section 5), as do DeCLIP's evaluations
    (`Resize(256)`, `CenterCrop(224)`). `resize` is what the model's own size is to its `resize_mode`: the shorter side
    of an image, its longer side, or both.

    Args:
        preprocess: open_clip's `preprocess_cfg` of the model. Its `size` is that of the crop.

    Raises:
        ModelError: the crop is larger than `resize`.
    """
    own = PreprocessCfg(**preprocess)
    size = own.size if isinstance(own.size, tuple | list) else (own.size, own.size)
    if resize < max(size):
        what = f"images are resized to {resize} px, but the teacher's crop has {max(size)}"
        raise ModelError(what, where="teacher.resize", fix=f"give at least {max(size)}, or leave it out")
    steps = image_transform_v2(PreprocessCfg(**{**preprocess, "size": resize}), is_train=False).transforms
    crop = CenterCropOrPad(size, fill=own.fill_color) if own.resize_mode == "longest" else CenterCrop(size)
    after = [step for step in steps[1:] if not isinstance(step, CenterCrop | CenterCropOrPad)]
    made: Callable[[Image.Image], Tensor] = Compose([steps[0], crop, *after])
    return made
