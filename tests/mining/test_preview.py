from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.mining import Thresholds, mine
from harness.mining.preview import PreviewBatch, gallery_of, write_preview
from harness.runs.gallery import read_gallery, write_gallery

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags of a page and the text of its cards."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cards: dict[str, list[str]] = {}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "article":
            self.inside = dict(attrs)["id"] or ""
            self.cards[self.inside] = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside and data.strip():
            self.cards[self.inside].append(data.strip())


def batch(truth: bool = True) -> PreviewBatch:
    """Images 0 and 1 are alike, image 2 stands alone, and image 3's own caption is rejected."""
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    text = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, -1]])
    owner = torch.arange(4)
    limits = Thresholds(image_text=0.9, image_image=0.95, keep_ground_truth=False, drop_below=0.5)
    return PreviewBatch(
        keys=["shard/0", "shard/1", f"shard/{SCRIPT}", "shard/3"],
        pictures=[Image.new("RGB", (300, 200), (200, shade, 0)) for shade in (0, 80, 160, 240)],
        captions=["a red disc", f"a {SCRIPT} disc", "a blue square", "stock photo"],
        owner=owner.numpy(),
        mined=mine(limits, image, text, owner),
        truth=np.array([[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool) if truth else None,
        informative=np.array([True, True, True, False]) if truth else None,
    )


def test_cards_show_who_was_mined_by_what_and_whether_it_is_so(tmp_path: Path) -> None:
    write_preview(tmp_path / "gallery.html", [batch()], {"teacher": "ViT & co."})
    text = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [" | ".join(card) for card in page.cards.values()] == [
        f"shard/0 | Its own captions | a red disc | true | Mined | a {SCRIPT} disc | image-image | false",
        f"shard/1 | Its own captions | a {SCRIPT} disc | true | Mined | a red disc | image-text | image-image | true",
        "shard/3 | Its own captions | stock photo | dropped | says nothing",
    ]
    assert list(page.cards) == ["i1-0", "i1-1", "i1-3"]
    assert "For 1 of 4 images mining changed nothing." in text
    assert "ViT &amp; co." in text
    assert re.search(r"mining precision</dt><dd>0\.5<", text)


def test_nothing_from_the_data_becomes_markup(tmp_path: Path) -> None:
    write_preview(tmp_path / "gallery.html", [batch()], {SCRIPT: SCRIPT})
    text = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert "script" not in Page(text).tags
    assert SCRIPT not in text
    assert "http:" not in text
    assert "https:" not in text


def test_each_picture_is_embedded_once_and_scaled_down(tmp_path: Path) -> None:
    write_preview(tmp_path / "gallery.html", [batch(), batch(truth=False)])
    found = re.findall(r"url\(\"data:image/jpeg;base64,([^\"]+)\"\)", (tmp_path / "gallery.html").read_text())
    assert len(found) == 8
    assert Image.open(io.BytesIO(base64.b64decode(found[0]))).size == (160, 107)


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    same, owner = torch.ones(40, 1), torch.arange(40)
    pictures = [Image.new("RGB", (8, 8))] * 40
    words = [f"caption {number}" for number in range(40)]
    crowd = PreviewBatch(words, pictures, words, owner.numpy(), mine(Thresholds(image_image=0.5), same, same, owner))
    write_preview(tmp_path / "gallery.html", [crowd])
    page = Page((tmp_path / "gallery.html").read_text())
    assert page.cards["i1-0"].count("image-image") == 24
    assert page.cards["i1-0"][-1] == "and 15 more"


def test_a_gallery_holds_the_images_for_which_most_was_found_and_reads_back(tmp_path: Path) -> None:
    found = gallery_of(batch(), most=2)
    assert (found.images, found.changed, len(found.cards)) == (4, 3, 2)
    first = found.cards[0]
    assert first.key == "shard/0"
    assert [(one.text, one.key, one.clauses, one.verdict) for one in first.mined] == [
        (f"a {SCRIPT} disc", "shard/1", ("image-image",), "false")
    ]
    write_gallery(tmp_path / "gallery.json", found)
    assert read_gallery(tmp_path / "gallery.json") == found


@pytest.mark.parametrize("damage", ['{"images": 1', '{"images": 4}', "[]", "javascript"])
def test_a_gallery_that_cannot_be_shown_is_none(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "gallery.json"
    assert read_gallery(file) is None
    text = gallery_of(batch()).model_dump_json()
    file.write_text(text.replace("data:image/jpeg;base64,", "javascript:", 1) if damage == "javascript" else damage)
    assert read_gallery(file) is None
