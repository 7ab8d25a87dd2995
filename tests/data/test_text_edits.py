"""Edits of captions: what they change, what they leave, and how often each is drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config.text_edits import HardNegatives, TextEdits
from harness.data.dataset.text_edits import MASK, edited, edited_texts, hard_negative, hard_negatives, masked_tokens
from harness.data.rng import stream

CAPTION = "A large Red circle, to the left of two small blue squares."
VOCABULARY = ("a", "red", "blue", "two", "circle", "of", "square", "left", ",", "dog.", "Dog")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join)


def drawn(spec: TextEdits | HardNegatives, text: str, count: int = 400) -> list[str | None]:
    makes = (stream("test", number) for number in range(count))
    match spec:
        case TextEdits():
            return [edited(spec, text, make) for make in makes]
        case HardNegatives():
            return [hard_negative(spec, text, make) for make in makes]


@given(WORDS, st.integers(0, 50))
def test_a_swap_keeps_the_words_and_a_deletion_their_order(text: str, seed: int) -> None:
    words = text.split()
    swapped = edited(TextEdits(delete=0), text, stream(seed)).split()
    assert Counter(swapped) == Counter(words)
    assert sum(a != b for a, b in zip(swapped, words, strict=True)) <= 2
    left = edited(TextEdits(swap=0, deleted=0.5), text, stream(seed)).split()
    assert bool(left) == bool(words)
    rest = iter(words)
    assert all(any(word == one for one in rest) for word in left), "the words that are left are in their order"


@given(WORDS, st.integers(0, 50))
def test_a_hard_negative_changes_the_caption_or_is_none(text: str, seed: int) -> None:
    found = hard_negative(HardNegatives(), text, stream(seed))
    assert found is None or (found != text and len(found.split()) == len(text.split()))


def test_each_edit_is_drawn_as_often_as_its_weight_says() -> None:
    words = "one two three four five six seven eight nine ten"
    found = drawn(TextEdits(swap=1, delete=2, keep=1, deleted=1), words)
    kinds = Counter("keep" if one == words else "delete" if len(str(one).split()) == 1 else "swap" for one in found)
    assert [kinds[kind] / len(found) for kind in ("swap", "delete", "keep")] == pytest.approx(
        [0.25, 0.5, 0.25], abs=0.07
    )


def test_a_deletion_takes_its_share_of_the_words() -> None:
    words = " ".join(map(str, range(50)))
    left = [len(str(one).split()) for one in drawn(TextEdits(swap=0, deleted=0.3), words)]
    assert np.mean(left) == pytest.approx(35, abs=0.5)


def test_stop_words_are_removed_as_often_as_asked() -> None:
    spec = TextEdits(swap=0, delete=0, keep=1, stopwords=0.8)
    found = Counter(drawn(spec, CAPTION))
    assert set(found) == {CAPTION, "large Red circle, left two small blue squares."}
    assert found[CAPTION] / 400 == pytest.approx(0.2, abs=0.06)
    assert set(drawn(spec, "to be or not", 20)) == {"to be or not"}, "a caption of stop words alone stays"


def test_a_hard_negative_by_each_rule() -> None:
    def found(edit: str) -> set[str | None]:
        return set(drawn(HardNegatives.model_validate({"edits": [edit]}), CAPTION))

    attributes, numbers, orders = found("attribute"), found("number"), found("order")
    assert "A large Green circle, to the left of two small blue squares." in attributes
    assert "A large Red circle, to the right of two small blue squares." in attributes
    alike = ("A big", "A huge", "A giant")
    assert not any(str(one).startswith(alike) for one in attributes), "they mean the same as large"
    assert len(numbers) == 9
    assert all(str(one).startswith("A large Red circle, to the left of ") for one in numbers)
    assert "A large Circle red, to the left of two small blue squares." in orders
    assert all(str(one).split()[0] == "A" for one in orders), "stop words stay"


def test_edits_of_a_caption_that_no_rule_fits() -> None:
    assert hard_negative(HardNegatives(edits=("number", "attribute")), "a dog in the park", stream(0)) is None
    assert hard_negative(HardNegatives(), "stock", stream(0)) is None
    assert hard_negative(HardNegatives(), "dog dog", stream(0)) is None
    assert hard_negatives(HardNegatives(), ["stock", "red dog"], [(0,), (1,)])[0] is None


def test_rules_that_apply_are_drawn_evenly() -> None:
    found = drawn(HardNegatives(edits=("number", "order")), CAPTION)
    kinds = Counter("number" if "two" not in str(one).lower() else "order" for one in found)
    assert kinds["number"] / 400 == pytest.approx(0.5, abs=0.08)


def test_an_edit_depends_on_its_key_and_view_alone() -> None:
    keys = [(seed, epoch, sample) for seed in range(2) for epoch in range(2) for sample in range(2)]
    texts = [" ".join(map(str, range(30)))] * len(keys)
    together = [edited_texts(TextEdits(), texts, keys, view) for view in range(2)]
    assert len({one for column in together for one in column}) == 2 * len(keys)
    alone = [edited_texts(TextEdits(), texts[:1], [key], 1)[0] for key in reversed(keys)]
    assert alone[::-1] == together[1]


def test_tokens_are_masked_as_in_bert() -> None:
    tokens = torch.zeros(200, 20, dtype=torch.long)
    tokens[:, 0], tokens[:, 1:15], tokens[:, 15] = 98, torch.randint(1, 98, (200, 14)), 99
    keys = [(number,) for number in range(200)]
    found = masked_tokens(tokens, keys, 0.3)
    masked, wanted = found.unbind(1)
    chosen = wanted >= 0
    assert torch.equal(wanted[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen]), "other tokens stay"
    assert not chosen[:, 0].any()
    assert not chosen[:, 15:].any(), "neither the end nor padding is masked"
    assert chosen[:, 1:15].double().mean() == pytest.approx(0.3, abs=0.03)
    mask, kept = masked[chosen] == MASK, masked[chosen] == tokens[chosen]
    assert mask.double().mean() == pytest.approx(0.8, abs=0.04)
    assert kept.double().mean() == pytest.approx(0.1, abs=0.03)
    assert masked.argmax(dim=1).tolist() == [15] * 200, "random tokens never end the text"
    assert torch.equal(masked_tokens(tokens[5:6], keys[5:6], 0.3), found[5:6]), "a text depends on its key alone"


@pytest.mark.parametrize(
    ("spec", "fields", "told"),
    [
        (TextEdits, {"swap": 0, "delete": 0}, "the weights of all edits are 0"),
        (HardNegatives, {"edits": []}, "edits is empty or repeats one"),
        (HardNegatives, {"edits": ["order", "order"]}, "edits is empty or repeats one"),
    ],
)
def test_bad_edits(spec: type[TextEdits] | type[HardNegatives], fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec.model_validate(fields)
