"""1,000 damaged files of others' results and 1,000 damaged data files: each is read, or refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.base.boundary import door
from harness.base.errors import HarnessError
from harness.config.data import TableData, WebdatasetData
from harness.data.sources.inspection import inspect_data
from harness.reporting.references import as_toml, assigned, read_external
from tests.data.made import encoded, picture, sample, write_tar
from tests.fuzz.campaign import Campaign
from tests.fuzz.mutate import garbled

pytestmark = pytest.mark.fuzz
REFERENCES = Campaign("references", cases=1000, few=40, share=0.1)
DATA = Campaign("data", cases=1000, few=25, share=0.2)
RUN = {"dataset": "wds/vtab/pets", "model": "ViT-B-32", "pretrained": "x", "task": "zeroshot_classification"}
RESULTS: Mapping[str, str] = {
    "run.json": json.dumps({**RUN, "metrics": {"acc1": 0.62, "acc5": 0.9}, "language": "en"}),
    "results.jsonl": '{"imagenet-zeroshot-val-top1": 0.5, "epoch": 1}\n{"image_to_text_R@1": 0.2, "epoch": 2}\n',
    "table.csv": "dataset,model,pretrained,task,acc1\nwds/vtab/pets,ViT,x,zeroshot_classification,0.5\n",
    "paper.toml": 'source = "ALIP"\n[protocol]\nsplit = "test"\n[rows.alip]\n"flickr8k/acc1" = 7.5\n',
}


def one_sentence(error: HarnessError) -> None:
    text = str(error)
    assert "\n" not in text
    assert error.where
    assert "Traceback" not in text


def test_a_damaged_file_of_results(tmp_path: Path) -> None:
    for number, draw in REFERENCES.draws():
        name = draw.choice(sorted(RESULTS))
        (tmp_path / name).write_bytes(garbled(RESULTS[name].encode(), draw))
        with REFERENCES.case(number, name):
            try:
                as_toml(assigned(read_external(tmp_path / name), {}))
            except HarnessError as error:
                one_sentence(error)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard with a file of captions beside it, a table of text, and a table with embedded images."""
    root = tmp_path_factory.mktemp("data")
    write_tar(root / "0.tar", [(f"{number:04d}", sample(number)) for number in range(4)])
    rows = [{"id": f"{number:04d}", "captions": [f"a {number}", "b"]} for number in range(4)]
    (root / "beside.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for number in range(3):
        picture(number).save(root / f"{number}.jpg")
    (root / "t.csv").write_text("image,caption,more\n" + "".join(f"{n}.jpg,a {n},b {n}\n" for n in range(3)))
    images = [{"bytes": encoded(picture(number)), "path": None} for number in range(3)]
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c"]}), root / "t.parquet")
    return root


SPECS: Mapping[str, Any] = {
    "0.tar": lambda root: WebdatasetData(shards=str(root / "0.tar"), pseudo={"first": "json:captions"}),
    "beside.jsonl": lambda root: WebdatasetData.model_validate(
        {"shards": str(root / "0.tar"), "pseudo": {"b": {"path": str(root / "beside.jsonl")}}}
    ),
    "t.csv": lambda root: TableData.model_validate({"path": str(root / "t.csv"), "pseudo": {"more": "more"}}),
    "0.jpg": lambda root: TableData(path=str(root / "t.csv")),
    "t.parquet": lambda root: TableData(path=str(root / "t.parquet")),
}


def test_a_damaged_data_file(made: Path, tmp_path: Path) -> None:
    for number, draw in DATA.draws():
        name = draw.choice(sorted(SPECS))
        root = tmp_path / str(number)
        shutil.copytree(made, root)
        content = (root / name).read_bytes()
        if draw.random() < 0.05:
            (root / name).unlink()
            os.mkfifo(root / name)
        else:
            (root / name).write_bytes(garbled(content, draw))
        with DATA.case(number, name):
            try:
                report = door(inspect_data)(SPECS[name](root), root / "cache")
                assert report.samples <= 8
            except HarnessError as error:
                one_sentence(error)
        shutil.rmtree(root)
