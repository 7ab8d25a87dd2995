from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from harness.models.tokens import TokenCache, can_split

WORDS = st.sampled_from(
    [
        "a",
        "photo",
        "of",
        "Dog's",
        "they'll",
        "<end_of_text>",
        "<START_OF_TEXT>x",
        "&amp;",
        "&lt;b",
        "x&y",
        "don't",
        "'S",
        "3.5mm",
        "café",
        "cafÃ©",
        "“quoted”",
        "ﬁne",
        "ＡＢＣ",
        "naïve_name",
        "…",
        "é",
        "\x1b[36;1m",
        "<br>",
        "--",
        "\x7f",
    ]
)
SPACES = st.sampled_from([" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2028", "\x1c", " _ "])
TEXTS = st.lists(st.one_of(WORDS, SPACES, st.text(max_size=6)), max_size=30).map("".join)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=["word " * 90, "", " ", "'s's're 12 the_end", "x" * 400])
def test_words_remembered_give_the_ids_of_whole_texts(clean: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[clean]
    assert can_split(tokenizer)
    assert torch.equal(TokenCache(tokenizer)(texts), tokenizer(texts))


def test_other_tokenizers_are_left_to_themselves() -> None:
    assert not can_split(SimpleTokenizer(reduction_mask="simple"))
    assert not can_split(SimpleTokenizer(additional_special_tokens=["<a b>"]))
    assert not can_split(lambda texts: torch.zeros(len(texts), 7, dtype=torch.long))
    spaced = SimpleTokenizer(additional_special_tokens=["<a b>"])
    assert torch.equal(TokenCache(spaced)(["a <a b> c"]), spaced(["a <a b> c"]))


TOKENIZERS = {clean: SimpleTokenizer(clean=clean) for clean in ("lower", "whitespace", "canonicalize")}
