"""Token ids of texts. Each text is tokenized once; with CLIP's own tokenizer, each word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CAPACITY = 1_000_000
"""Number of cached texts, and of cached words; at 77 tokens of 4 bytes about 0.3 GB."""
_PLAIN = re.compile("[ -%'-~]*")
"""Printable ASCII except `&`, which starts an HTML entity. Cleaning changes only spaces and case of such text."""


_SPECIAL = 8
"""Tokens that tokenizers add to a text, generously."""


class TokenCache:
    """An open_clip tokenizer with a cache, because every text of the data set recurs each epoch."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        """open_clip's."""
        self._words = Words(tokenizer) if can_split(tokenizer) else None
        self._rows: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str], *, keep: bool = True) -> Tensor:
        """Token ids, [M, context_length] int64. Without `keep`, for texts that do not recur, nothing is cached."""
        if not keep:
            return torch.from_numpy(self._tokens(texts).astype(np.int64))
        new = [text for text in dict.fromkeys(texts) if text not in self._rows]
        if len(self._rows) + len(new) > CAPACITY:
            self._rows.clear()
            new = list(dict.fromkeys(texts))
        if new:
            self._rows.update(zip(new, self._tokens(new), strict=True))
        return torch.from_numpy(np.stack([self._rows[text] for text in texts]).astype(np.int64))

    def _tokens(self, texts: list[str]) -> NDArray[np.int32]:
        if self._words is not None:
            return self._words.rows(texts)
        tokens: NDArray[np.int32] = self.tokenizer(texts).numpy().astype(np.int32)
        return tokens


def cut_by_context(tokenizer: Any, texts: Sequence[str]) -> list[bool]:
    """Whether each of `texts` has more tokens than the context of an open_clip tokenizer, which leaves out its end.

    Texts with fewer bytes than the context has tokens fit. The others are tokenized with one more token: a text that
    fits has the same tokens and then padding.
    """
    context = int(tokenizer.context_length)
    found = [len(text.encode()) > context - _SPECIAL for text in texts]
    if doubtful := [index for index, is_long in enumerate(found) if is_long]:
        some = ["", *(texts[index] for index in doubtful)]
        short, longer = tokenizer(some), tokenizer(some, context_length=context + 1)
        cut = (longer[:, :context] != short).any(dim=1) | (longer[:, context] != longer[0, context])
        for index, is_cut in zip(doubtful, cut[1:].tolist(), strict=True):
            found[index] = is_cut
    return found


def can_split(tokenizer: Any) -> bool:
    """Whether a tokenizer encodes a text as the concatenated ids of its words.

    open_clip's SimpleTokenizer does: no part of its pattern matches a space. One with further special tokens, in which
    there may be spaces, or that drops tokens of long texts at random, is left to itself.
    """
    is_simple = type(tokenizer) is SimpleTokenizer and bool(tokenizer.context_length)
    return is_simple and tokenizer.reduction_fn is None and len(tokenizer.all_special_ids) == 2


class Words:
    """A SimpleTokenizer that caches words: captions use few distinct words, and cleaning a text is expensive."""

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def rows(self, texts: list[str]) -> NDArray[np.int32]:
        """The tokenizer's result for `texts` [M, L]: ids between start and end tokens, truncated, padded with 0."""
        first, last = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        found = np.zeros((len(texts), self.tokenizer.context_length or 0), dtype=np.int32)
        for row, text in zip(found, texts, strict=True):
            ids = [*[first, *self._ids(text)][: len(row) - 1], last]
            row[: len(ids)] = ids
        return found

    def _ids(self, text: str) -> list[int]:
        if _PLAIN.fullmatch(text) is None:
            return list(self.tokenizer.encode(text))
        return [number for word in text.split() for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if (known := self._known.get(word)) is None:
            if len(self._known) >= CAPACITY:
                self._known.clear()
            known = self._known[word] = self.tokenizer.encode(word)
        return known
