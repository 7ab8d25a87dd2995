from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]
from torchvision.transforms import functional as torchvision_functional

from harness.config.augment import Augment, CropAugment, DeCLIPAugment, FFFAugment, NoAugment, SimCLRAugment
from harness.data.dataset import transforms
from harness.data.dataset.transforms import DRAWS, Pixels, augmented, crop_box
from tests.data.made import picture

SIZES = st.integers(8, 90)


def chance(seed: int) -> list[float]:
    return [float(number) for number in np.random.default_rng(seed).random(DRAWS)]


def as_tensor(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.sampled_from([16, 31, 32]), st.integers(0, 9))
def test_unaugmented_pixels_are_those_of_open_clips_evaluation_transform(
    width: int, height: int, size: int, seed: int
) -> None:
    image = picture(seed, width, height)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    theirs: Any = image_transform_v2(PreprocessCfg(size=size, mean=mean, std=std), is_train=False)
    ours = (as_tensor(augmented(image, NoAugment(), size, ())).float() / 255 - torch.tensor(mean)[:, None, None]) / (
        torch.tensor(std)[:, None, None]
    )
    assert torch.equal(ours, theirs(image)) or torch.allclose(ours, theirs(image), atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(4, 200), st.integers(4, 200), st.integers(0, 10**6))
def test_crops_lie_inside_and_have_the_declared_area_and_ratio(width: int, height: int, seed: int) -> None:
    augment = CropAugment(min_scale=0.3, max_scale=0.8)
    left, top, right, bottom = crop_box((width, height), augment, chance(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if 0.8 < width / height < 1.25 and min(width, height) > 30:
        area = (right - left) * (bottom - top) / (width * height)
        assert 0.3 * 0.93 < area < 0.8 * 1.07
        assert 0.7 < (right - left) / (bottom - top) < 1.43


def test_crops_are_distributed_as_torchvisions() -> None:
    augment = CropAugment(min_scale=0.2)
    image = torch.zeros(3, 60, 100)
    torch.manual_seed(0)
    params = [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in params], dtype=float)
    boxes = np.array([crop_box((100, 60), augment, chance(seed)) for seed in range(1500)], dtype=float)
    ours = np.column_stack([boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    for column in range(4):
        spread = math.sqrt(ours[:, column].var() / 1500 + theirs[:, column].var() / 1500)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 4 * spread
        assert 0.9 < ours[:, column].std() / theirs[:, column].std() < 1.1


def test_an_image_too_long_for_any_try_is_cropped_at_its_centre() -> None:
    assert crop_box((400, 10), CropAugment(min_scale=0.9), chance(1)) == (193, 0, 206, 10)
    assert crop_box((10, 400), CropAugment(min_scale=0.9), chance(1)) == (0, 193, 10, 206)


def test_a_crop_is_cut_and_resized_as_torchvision_does() -> None:
    image, augment = picture(3, 70, 50), CropAugment(flip=0)
    left, top, right, bottom = crop_box(image.size, augment, chance(5))
    theirs = torchvision_functional.resized_crop(
        image, top, left, bottom - top, right - left, [32, 32], torchvision_functional.InterpolationMode.BICUBIC
    )
    assert np.array_equal(augmented(image, augment, 32, chance(5)), np.asarray(theirs).transpose(2, 0, 1))
    flipped = augmented(image, CropAugment(flip=1), 32, chance(5))
    assert np.array_equal(flipped[:, :, ::-1], augmented(image, augment, 32, chance(5)))


@pytest.mark.parametrize("seed", range(6))
def test_jitter_is_torchvisions_with_the_same_factors(seed: int) -> None:
    numbers, augment, image = chance(seed), FFFAugment(jitter=1), picture(seed)
    signed = [2 * number - 1 for number in numbers[24:28]]
    steps = {
        0: lambda x: torchvision_functional.adjust_brightness(x, 1 + 0.4 * signed[0]),
        1: lambda x: torchvision_functional.adjust_contrast(x, 1 + 0.4 * signed[1]),
        2: lambda x: torchvision_functional.adjust_saturation(x, 1 + 0.4 * signed[2]),
        3: lambda x: torchvision_functional.adjust_hue(x, 0.1 * signed[3]),
    }
    expected = image
    for step in np.argsort(numbers[28:32]).tolist():
        expected = steps[step](expected)
    assert np.array_equal(np.asarray(transforms._jittered(image, augment, numbers)), np.asarray(expected))
    assert transforms._jittered(image, FFFAugment(jitter=0), numbers) is image


def test_blur_is_a_gaussian_of_the_drawn_width() -> None:
    spot = np.zeros((41, 41, 3), dtype=np.uint8)
    spot[18:23, 18:23] = 255
    numbers = chance(0)
    for strength in (0.3, 0.6, 1.0):
        numbers[32:34] = 0.0, strength
        sigma = 0.1 + 1.9 * strength
        weights = np.asarray(transforms._blurred(Image.fromarray(spot), FFFAugment(blur=1), numbers), float)[..., 0]
        position = np.arange(41) - 20
        variance = (weights.sum(axis=0) * position**2).sum() / weights.sum()
        assert variance == pytest.approx(2 + sigma**2, rel=0.15), "a box of 5 pixels has variance 2"


@pytest.mark.parametrize(
    "augment", [CropAugment(), FFFAugment(), FFFAugment(blur=0), FFFAugment(jitter=0), DeCLIPAugment()]
)
def test_augmentation_is_a_function_of_image_and_chance(augment: Augment) -> None:
    image = picture(1)
    np.random.seed(0)
    first = augmented(image, augment, 24, chance(1))
    torch.manual_seed(9)
    np.random.random(9)
    assert np.array_equal(first, augmented(image, augment, 24, chance(1)))
    assert not np.array_equal(first, augmented(image, augment, 24, chance(2)))
    assert first.shape == (3, 24, 24)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous


def test_simclrs_recipe_is_fffs_with_greyscale_between_jitter_and_blur() -> None:
    image, numbers, augment = picture(3), chance(3), SimCLRAugment(jitter=1, blur=1)
    assert (augment.min_scale, augment.greyscale, FFFAugment().jitter, FFFAugment().blur) == (0.08, 0.2, 0.8, 0.5)
    for drawn in (0.19, 0.21):
        numbers[34] = drawn
        jittered = transforms._jittered(transforms._cropped(image, augment, 24, numbers), augment, numbers)
        grey = torchvision_functional.to_grayscale(jittered, 3) if drawn < 0.2 else jittered
        expected = np.asarray(transforms._blurred(grey, augment, numbers)).transpose(2, 0, 1)
        assert np.array_equal(augmented(image, augment, 24, numbers), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_declips_recipe_is_that_of_its_code(seed: int, kind: Any) -> None:
    """`MOCOV2` of DeCLIP's imagenet_dataloader.py, from torchvision's and Pillow's operations in its order."""
    image, numbers, augment = picture(seed, 70, 50), chance(seed), DeCLIPAugment(interpolation=kind)
    left, top, right, bottom = crop_box(image.size, augment, numbers)
    resample = torchvision_functional.InterpolationMode(kind)
    theirs = torchvision_functional.resized_crop(image, top, left, bottom - top, right - left, [32, 32], resample)
    if numbers[23] < 0.8:
        theirs = transforms._jittered(theirs, FFFAugment(jitter=1), numbers)  # torchvision's, by a test above
    if numbers[34] < 0.2:
        theirs = torchvision_functional.to_grayscale(theirs, 3)
    if numbers[32] < 0.5:
        theirs = theirs.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * numbers[33]))
    if numbers[22] < 0.5:
        theirs = torchvision_functional.hflip(theirs)
    assert np.array_equal(augmented(image, augment, 32, numbers), np.asarray(theirs).transpose(2, 0, 1))


def test_declips_parameters_are_seen_in_effect() -> None:
    """A fifth of the pictures is grey, half of them are flipped, and crops cover .2 to 1 of the area, evenly."""
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None], (60, 60, 3)) * np.array([4, 2, 1], np.uint8)
    image, augment = Image.fromarray(ramp), DeCLIPAugment(jitter=0, blur=0)
    grey = flipped = 0
    shares = []
    for seed in range(1500):
        numbers = chance(seed)
        red, green, blue = augmented(image, augment, 16, numbers).astype(int)
        grey += bool((red == green).all() and (green == blue).all())
        flipped += bool(red[:, 0].sum() > red[:, -1].sum())
        left, top, right, bottom = crop_box(image.size, augment, numbers)
        shares.append((right - left) * (bottom - top) / 3600)
    for seen, probability in ((grey, 0.2), (flipped, 0.5)):
        assert abs(seen / 1500 - probability) < 4 * math.sqrt(probability * (1 - probability) / 1500)
    assert min(shares) == pytest.approx(0.2, abs=0.02)
    assert max(shares) > 0.95
    assert 0.5 < np.mean(shares) < 0.6  # .6, less the tries that large crops of another ratio fail


def test_gates_open_with_their_probability() -> None:
    image = picture(2)
    changed = {"jitter": 0, "blur": 0, "flip": 0}
    augment = FFFAugment(min_scale=1, max_scale=1, jitter=0.3, blur=0.7, flip=0.2)
    for seed in range(1500):
        numbers = chance(seed)
        changed["jitter"] += transforms._jittered(image, augment, numbers) is not image
        changed["blur"] += transforms._blurred(image, augment, numbers) is not image
        changed["flip"] += numbers[22] < augment.flip
    for name, probability in (("jitter", 0.3), ("blur", 0.7), ("flip", 0.2)):
        assert abs(changed[name] / 1500 - probability) < 4 * math.sqrt(probability * (1 - probability) / 1500)
