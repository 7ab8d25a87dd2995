"""Token ids of texts, each text tokenized once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

CAPACITY = 1_000_000
"""Texts remembered; at 77 tokens of 4 bytes about 0.3 GB."""


class TokenCache:
    """An open_clip tokenizer that remembers: a text of the data set comes back every epoch."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids, [M, context_length] int64."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if len(self._rows) + len(new) > CAPACITY:
            self._rows.clear()
            new = list(dict.fromkeys(texts))
        if new:
            tokens = self._tokenizer(new).numpy().astype(np.int32)
            self._rows.update(zip(new, tokens, strict=True))
        return torch.from_numpy(np.stack([self._rows[text] for text in texts]).astype(np.int64))
