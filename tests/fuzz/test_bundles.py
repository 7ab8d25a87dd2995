"""1,000 random manipulations of a published bundle; see `tests.fuzz.bundles`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import api
from harness.execute.bundle import changed, root_hash
from harness.execute.publish import Published
from tests.fuzz.bundles import CHANGES, made_anew
from tests.fuzz.campaign import Campaign
from tests.test_integrity import Place, trained
from tests.test_publish import bundle

assert bundle
assert trained  # the fixtures
pytestmark = pytest.mark.fuzz
CAMPAIGN = Campaign("bundles", cases=1000, few=len(CHANGES), share=0.15)
WHOLLY = 20
"""Every so many, the whole of `harness verify` has to find it and to end without an exception."""


def test_every_manipulation_is_found(bundle: Published, tmp_path: Path) -> None:
    for number, draw in CAMPAIGN.draws():
        change = CHANGES[number % len(CHANGES)]
        with CAMPAIGN.case(number, change.__name__):
            folder = tmp_path / str(number)
            shutil.copytree(bundle.folder, folder)
            change(folder, draw)
            assert changed(folder)
            if number % WHOLLY == 0:
                assert api.verify(folder).problems
            made_anew(folder)
            assert root_hash(folder) != bundle.root
            if number % WHOLLY == 1:
                assert api.verify(folder, root=bundle.root).problems
            shutil.rmtree(folder)


def test_the_untouched_bundle_passes(bundle: Published, trained: Place) -> None:
    assert api.verify(bundle.folder, root=bundle.root).problems == []
    assert changed(bundle.folder) == []
