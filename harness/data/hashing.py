"""Short hashes, for finding what is repeated among millions."""

from __future__ import annotations

import hashlib


def hash64(content: bytes) -> int:
    """64 bits of the BLAKE2b hash of `content`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
