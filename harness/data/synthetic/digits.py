"""The embedded set `digits`: scikit-learn's bundled handwritten digits, enlarged, with declared noisy captions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.config.data import DigitsData
from harness.data.rng import stream
from harness.data.synthetic.captions import DIGITS, PARITIES, Claims
from harness.data.synthetic.shapes import Pixels

VOCABULARY = (DIGITS, PARITIES)
COUNTS = (len(DIGITS), len(PARITIES))
CLASS_NAMES = [values[0] for values in DIGITS]


def load(data: DigitsData) -> tuple[Pixels, Claims]:
    """All pictures [1797, H, W, 3] and their true (digit, parity) [1797, 2]."""
    # Costs seconds and is needed only once, when the set is generated.
    from sklearn.datasets import load_digits

    bundle = load_digits()
    digits = bundle.target.astype(np.int8)
    grey = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    side = (data.image_size, data.image_size)
    large = [np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.BICUBIC)) for picture in grey]
    return np.repeat(np.stack(large)[..., None], 3, axis=3), np.stack([digits, digits % 2], axis=1)


def split(data: DigitsData, digits: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (to train, to test); the test set has as many pictures of each digit as can be."""
    shuffled = stream(data.seed, "digits split").permutation(len(digits))
    by_digit = [shuffled[digits[shuffled] == digit] for digit in range(10)]
    quotas = [data.test_samples // 10 + (digit < data.test_samples % 10) for digit in range(10)]
    test = np.concatenate([members[:quota] for members, quota in zip(by_digit, quotas, strict=True)])
    train = np.setdiff1d(np.arange(len(digits)), test)
    return train, np.sort(test)
