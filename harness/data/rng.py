"""Random numbers that are a function of what they are for, never of what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(*purpose: int | str) -> np.random.Generator:
    """A generator whose draws depend on `purpose` alone: Philox, a counter-based generator, keyed by its hash."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
