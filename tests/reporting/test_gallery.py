"""The gallery of mined positives in the page: from files that runs leave, as text and pictures only."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.reporting import Document, collect, render
from harness.runs.gallery import Card, Gallery, MinedCaption, write_gallery
from tests.reporting.made import quickstart
from tests.reporting.test_escaping import NASTY

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="
NAMES = ("raw_mined", "fff")


def gallery(text: str) -> Gallery:
    mined = MinedCaption(text=text, key="b", picture=PIXEL, clauses=("image-text",), verdict="true")
    card = Card(key="a", picture=PIXEL, own=(text,), mined=(mined,), more=3)
    return Gallery(images=128, changed=90, figures=(("mining precision", "0.89"),), cards=(card,))


def test_the_page_shows_what_runs_left_best_arm_first(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    for arm in NAMES:
        write_gallery(store.run(plan.cells[arm, 1]).gallery, gallery(f"{arm} {NASTY}"))
    page = render(collect(plan, store), "html")
    assert page.count("<article>") == 2
    assert page.index("fff &lt;") < page.index("raw_mined &lt;")
    assert "FFF: all six captions, mined: changed 90 of 128 images; mining precision 0.89" in page
    assert '<span class="pill true">true</span>' in page
    assert page.count(PIXEL) == 4
    assert "and 3 more" in page
    assert "<script" not in page


def test_without_such_files_there_is_no_such_section(tmp_path: Path) -> None:
    plan, store = quickstart(tmp_path)
    results = collect(plan, store)
    assert 'id="mined"' not in render(results, "html")
    assert not any("left out:" in flag.text and "mined" in flag.text for flag in Document(results).flags)


@pytest.mark.parametrize("text", ["{}", "not JSON", '{"images": 1}'])
def test_a_damaged_file_is_named_and_another_seed_shown(tmp_path: Path, text: str) -> None:
    plan, store = quickstart(tmp_path)
    folder = store.run(plan.cells["fff", 0])
    folder.gallery.write_text(text)
    file = f"{folder.id}/gallery.json"
    said = f"The mined captions of FFF: all six captions, mined, seed 0, are left out: {file} is damaged."
    page = render(collect(plan, store), "html")
    assert said in page
    assert 'id="mined"' not in page
    write_gallery(store.run(plan.cells["fff", 1]).gallery, gallery("of another seed"))
    page = render(collect(plan, store), "html")
    assert said in page
    assert "of another seed" in page
