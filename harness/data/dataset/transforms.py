"""From a decoded image to pixels of the model's size, as torchvision defines it, on Pillow alone.

Chance comes from the caller as uniform numbers, so that an image's augmentation is a function of what they are drawn
for. torchvision itself draws from a global generator, and importing it takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from harness.base.registry import Registry
from harness.config.augment import Augment, CropAugment, DeCLIPAugment, FFFAugment, NoAugment, SimCLRAugment

Pixels: TypeAlias = NDArray[np.uint8]
"""[3, H, W]"""
Uniforms: TypeAlias = Sequence[float]
"""DRAWS numbers in [0, 1)."""

DRAWS = 35
_LOG_RATIO = math.log(4 / 3)
_CORNER, _FLIP, _JITTER, _FACTORS, _ORDER, _BLUR = 20, 22, 23, slice(24, 28), slice(28, 32), slice(32, 34)
_GREY = 34
_BICUBIC = Image.Resampling.BICUBIC

augmentations: Registry[[Image.Image, int, Uniforms], Image.Image] = Registry("train.augment")
"""What each augmentation makes of an image: one of size x size, in RGB."""


def augmented(image: Image.Image, augment: Augment, size: int, chance: Uniforms) -> Pixels:
    """`image` [H, W] in RGB as training sees it: pixels [3, size, size].

    Raises:
        SpecError: no code augments by `augment`.
    """
    result = augmentations(augment, image, size, chance)
    return np.ascontiguousarray(np.asarray(result).transpose(2, 0, 1))


@augmentations.register(NoAugment)
def _plain(_augment: NoAugment, image: Image.Image, size: int, _chance: Uniforms) -> Image.Image:
    return centre_cropped(image, size)


@augmentations.register(CropAugment)
def _crop(augment: CropAugment, image: Image.Image, size: int, chance: Uniforms) -> Image.Image:
    return _cropped(image, augment, size, chance)


@augmentations.register(FFFAugment)
def _fff(augment: FFFAugment, image: Image.Image, size: int, chance: Uniforms) -> Image.Image:
    return _blurred(_jittered(_cropped(image, augment, size, chance), augment, chance), augment, chance)


@augmentations.register(SimCLRAugment)
def _simclr(augment: SimCLRAugment, image: Image.Image, size: int, chance: Uniforms) -> Image.Image:
    image = _jittered(_cropped(image, augment, size, chance), augment, chance)
    return _blurred(_greyed(image, augment, chance), augment, chance)


@augmentations.register(DeCLIPAugment)
def _declip(augment: DeCLIPAugment, image: Image.Image, size: int, chance: Uniforms) -> Image.Image:
    resample = _BICUBIC if augment.interpolation == "bicubic" else Image.Resampling.BILINEAR
    image = image.crop(crop_box(image.size, augment, chance)).resize((size, size), resample)
    image = _greyed(_jittered(image, augment, chance), augment, chance)
    return _flipped(_blurred(image, augment, chance), augment, chance)


def centre_cropped(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` (bicubic), then the centre: open_clip's evaluation transform."""
    width, height = image.size
    short = min(width, height)
    if short != size:
        image = image.resize((int(size * width / short), int(size * height / short)), _BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _cropped(image: Image.Image, augment: CropAugment, size: int, chance: Uniforms) -> Image.Image:
    box = crop_box(image.size, augment, chance)
    return _flipped(image.crop(box).resize((size, size), _BICUBIC), augment, chance)


def _flipped(image: Image.Image, augment: CropAugment, chance: Uniforms) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance[_FLIP] < augment.flip else image


def _greyed(image: Image.Image, augment: SimCLRAugment, chance: Uniforms) -> Image.Image:
    return image.convert("L").convert("RGB") if chance[_GREY] < augment.greyscale else image


def crop_box(image: tuple[int, int], augment: CropAugment, chance: Uniforms) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop of an image (width, height); torchvision's RandomResizedCrop.

    The area is even in [min_scale, max_scale], the log aspect ratio in log [3/4, 4/3]; ten tries, then the centre.
    """
    width, height = image
    for scale, ratio in zip(chance[0:_CORNER:2], chance[1:_CORNER:2], strict=True):
        area = width * height * (augment.min_scale + (augment.max_scale - augment.min_scale) * scale)
        aspect = math.exp(_LOG_RATIO * (2 * ratio - 1))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(chance[_CORNER] * (width - w + 1)), int(chance[_CORNER + 1] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jittered(image: Image.Image, augment: FFFAugment, chance: Uniforms) -> Image.Image:
    if chance[_JITTER] >= augment.jitter:
        return image
    signed = [2 * number - 1 for number in chance[_FACTORS]]
    order = chance[_ORDER]
    for step in sorted(range(4), key=order.__getitem__):
        match step:
            case 0:
                image = ImageEnhance.Brightness(image).enhance(1 + augment.brightness * signed[0])
            case 1:
                image = ImageEnhance.Contrast(image).enhance(1 + augment.contrast * signed[1])
            case 2:
                image = ImageEnhance.Color(image).enhance(1 + augment.saturation * signed[2])
            case _:
                image = _turned(image, augment.hue * signed[3])
    return image


def _turned(image: Image.Image, turns: float) -> Image.Image:
    """`image` with its hue shifted by `turns` of the colour wheel."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue, dtype=np.int64) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), saturation, value)).convert("RGB")


def _blurred(image: Image.Image, augment: FFFAugment, chance: Uniforms) -> Image.Image:
    gate, strength = chance[_BLUR]
    if gate >= augment.blur:
        return image
    sigma = augment.min_sigma + (augment.max_sigma - augment.min_sigma) * strength
    return image.filter(ImageFilter.GaussianBlur(sigma))
