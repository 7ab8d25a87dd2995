from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from harness.config.augment import CropAugment, FFFAugment
from harness.config.data import PATH_FIELDS, Data, DigitsData, RawCaptions, ShapesData, TableData, WebdatasetData

DATA: TypeAdapter[Data] = TypeAdapter(Data)


def test_places_are_no_part_of_identity_but_what_is_read_is() -> None:
    here, there = WebdatasetData(shards="/a/*.tar"), WebdatasetData(shards="/b/{0..9}.tar")
    assert here.science() == there.science() == {"kind": "webdataset"}
    assert WebdatasetData(shards="x", raw="json:caption").science() == {"kind": "webdataset", "raw": "json:caption"}
    tables = [TableData(path="a.csv"), TableData(path="b.csv", image_root="/images")]
    assert tables[0].science() == tables[1].science() == {"kind": "table"}
    everything = {name for kind in (WebdatasetData, TableData) for name in kind.model_fields}
    assert set(PATH_FIELDS) <= everything


def test_one_column_and_a_list_of_one_are_the_same() -> None:
    one = DATA.validate_python({"kind": "table", "path": "a.csv", "pseudo": {"blip": "caption_blip"}})
    assert one == DATA.validate_python({"kind": "table", "path": "a.csv", "pseudo": {"blip": ["caption_blip"]}})
    assert one.science()["pseudo"] == {"blip": ["caption_blip"]}


def test_changing_one_field_of_a_captioner_keeps_its_other_defaults() -> None:
    world = DATA.validate_python({"kind": "shapes", "captioner_b": {"captions": 3}})
    assert isinstance(world, ShapesData)
    assert world.captioner_b.attribute_probability == ShapesData().captioner_b.attribute_probability


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kind": "shape"}, "does not match any of the expected tags"),
        ({"kind": "shapes", "train_sample": 3}, "Extra inputs"),
        ({"kind": "shapes", "skew": float("nan")}, "finite"),
        ({"kind": "shapes", "raw": {"generic": 0.7, "partial": 0.5}}, "more than the whole"),
        ({"kind": "webdataset"}, "Field required"),
        ({"kind": "webdataset", "shards": "x", "pseudo": {"raw": "json:a"}}, "not a valid name of a source"),
        ({"kind": "webdataset", "shards": "x", "pseudo": {"a/b": "json:a"}}, "not a valid name of a source"),
        ({"kind": "webdataset", "shards": "x", "pseudo": {"a": "json:"}}, "is not a valid location"),
        ({"kind": "table", "path": "x", "pseudo": {"a": []}}, "at least 1 item"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        DATA.validate_python(fields)


def test_ranges_of_augmentation_are_ordered() -> None:
    with pytest.raises(ValidationError, match="is above max_scale"):
        CropAugment(min_scale=0.9, max_scale=0.5)
    assert FFFAugment().science() == {"kind": "fff"}


def test_shares_may_fill_the_whole() -> None:
    assert RawCaptions(generic=0.3, partial=0.7).generic == 0.3
    assert DigitsData(test_samples=297).size() == 1500
