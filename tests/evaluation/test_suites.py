"""Suites and named protocols: what they expand to, where mirrors are found, and averages without holes."""

from __future__ import annotations

import json
from pathlib import Path

import clip_benchmark
import pytest
from clip_benchmark.datasets.builder import dataset_collection
from pydantic import ValidationError

from harness.config.evaluation import Evaluation, standing_metric
from harness.config.experiment import Experiment
from harness.config.load import load
from harness.config.protocols import set_name
from harness.config.suites import SUITES
from harness.evaluation.conventions import conventional_classnames, conventional_templates
from harness.evaluation.layout import describe, locate
from harness.planning.evaluation_sets import EvaluationSets
from harness.runs.record import EvaluationResult as Measured
from harness.runs.record import Metric
from harness.runs.request import evaluation_key, on_this_machine
from harness.runs.store import Store
from harness.runs.suite_averages import averages, holes
from tests.evaluation.worlds import write_set
from tests.reporting.made import record_of

SHIPPED = Path(clip_benchmark.__file__).parent / "datasets"


def measured(name: str, retrieval: bool = False, **values: float) -> Measured:
    metrics = {
        key.replace("_at_", "@"): Metric(value=one, standard_error=0.03, samples=100) for key, one in values.items()
    }
    task = "zeroshot_retrieval" if retrieval else "zeroshot_classification"
    return Measured.model_validate(
        {"set": name, "task": task, "protocol_id": f"id-{name}", "protocol": {}, "metrics": metrics}
    )


def eleven() -> list[Measured]:
    names = [set_name(one) for one in SUITES["fff11"].members]
    return [measured(name, acc1=place / 20, mean_per_class_recall=place / 40) for place, name in enumerate(names)]


def test_suites_are_those_of_their_sources() -> None:
    assert len(SUITES["fff11"].members) == 11
    assert set(SUITES["vtab+"].members) == set(dataset_collection["vtab+"])
    datacomp = SUITES["datacomp"]
    assert len(datacomp.members) + len(datacomp.elsewhere) == 38  # its FairFace and UTKFace are no part of the average


def test_a_suite_stands_for_its_sets_and_a_protocol_adds_what_it_changes() -> None:
    spec = Evaluation(sets=("fff11", "retrieval", "./mine"), protocols=("slip", "alip"))
    added = set(spec.references) - {*SUITES["fff11"].members, *SUITES["retrieval"].members, "./mine"}
    assert added == {"imagenet1k@slip", "imagenet1k@alip", "flickr30k@alip", "mscoco_captions@alip"}
    assert spec.under("imagenet1k@slip").templates == "imagenet7"
    assert spec.under("flickr30k@alip").prefix == "a photo of"
    assert spec.under("flickr30k@flair").split == "val"
    assert spec.under("pets") is spec


@pytest.mark.parametrize(
    ("reference", "metric"),
    [
        ("shapes", "shapes/acc1"),
        ("vtab/pets", "pets/acc1"),
        ("../data/my_set", "my_set/acc1"),
        ("vtab/pets@linear_probe", "pets@linear_probe/lp_acc1"),
        ("wds/mscoco_captions@alip", "mscoco_captions@alip/image_retrieval_recall@1"),
        ("shapes_retrieval", "shapes_retrieval/image_retrieval_recall@1"),
        ("voc2007_multilabel", "voc2007_multilabel/mean_average_precision"),
        ("fff11", "fff11/average"),
        ("retrieval@alip", "retrieval@alip/average"),
        ("datacomp", "imagenet1k/acc1"),  # it has no average here
    ],
)
def test_a_set_is_read_first_by_the_metric_of_its_kind_under_the_name_that_records_have(
    reference: str, metric: str
) -> None:
    assert standing_metric(reference) == metric


def test_an_experiment_is_judged_by_its_first_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    for sets, metric in ((["vtab/pets", "shapes"], "pets/acc1"), ([], "train/loss")):
        file.write_text(f"[evaluation]\nsets = {json.dumps(sets)}\n")
        assert load(file).primary == metric


def test_a_stated_set_takes_the_place_of_the_suites() -> None:
    references = Evaluation(sets=("/data/pets", "fff11")).references
    assert "/data/pets" in references
    assert "pets" not in references
    assert len(references) == 11


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sets": ["pets@slap"]}, 'there is no protocol "slap"'),
        ({"protocols": ["slap"]}, "slip"),
        ({"split": "../test"}, "pattern"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, list[str]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Evaluation.model_validate(fields)


def test_keys_of_plain_sets_are_what_they_were_and_protocols_have_their_own() -> None:
    plain, asked = Evaluation(sets=("imagenet1k",)), Evaluation(sets=("fff11",), protocols=("slip",))
    assert evaluation_key(plain, "imagenet1k") == evaluation_key(asked, "imagenet1k")
    assert evaluation_key(asked, "imagenet1k@slip") != evaluation_key(asked, "imagenet1k")


@pytest.mark.parametrize("place", ["pets", "wds/pets", "vtab/pets", "wds/vtab/pets", "wds_pets", "wds_vtab-pets_test"])
def test_mirrors_are_found_as_they_are_laid_out(tmp_path: Path, place: str) -> None:
    write_set(tmp_path / place, [[("a.cls", b"0")]], {})
    assert locate("pets", evaluation_root=tmp_path, embedded={}) == tmp_path / place
    here = on_this_machine(Evaluation(sets=("fff11",)), tmp_path)
    assert here.sets == ("pets",)
    sets, asking = EvaluationSets(Store(tmp_path / "store"), tmp_path), Experiment(evaluation=here)
    assert sets.taken(record_of("r", {}), asking).missing == ("pets",)


def test_sets_without_text_files_go_by_clip_benchmarks(tmp_path: Path) -> None:
    names = json.loads((SHIPPED / "en_classnames.json").read_text())
    templates = json.loads((SHIPPED / "en_zeroshot_classification_templates.json").read_text())
    write_set(tmp_path / "wds_vtab-pets", [[("a.cls", b"0")]], {})
    layout = describe(tmp_path / "wds_vtab-pets")
    assert layout.classnames == tuple(name.strip() for name in names["pets"])
    assert layout.templates == tuple(templates["pets"])


def test_caltech101s_labels_are_numbered_by_vtab_or_not_at_all() -> None:
    names = json.loads((SHIPPED / "en_classnames.json").read_text())
    assert conventional_classnames(Path("wds/vtab/caltech101")) == names["caltech101_vtab"]
    assert conventional_classnames(Path("wds/caltech101")) == []  # torchvision's numbers differ
    assert conventional_templates(Path("wds_vtab-caltech101")) != []


def test_averages_are_over_every_set_and_take_the_metric_that_stands_for_it() -> None:
    (average,) = averages(eleven())
    assert average.set == "fff11"
    assert average.metrics["acc1"].value == pytest.approx(sum(range(11)) / 20 / 11)
    per_class = {"pets", "flowers", "caltech101", "fgvc_aircraft"}
    names = [set_name(one) for one in SUITES["fff11"].members]
    expected = sum(place / (40 if name in per_class else 20) for place, name in enumerate(names)) / 11
    assert average.metrics["average"].value == pytest.approx(expected)
    assert average.metrics["average"].standard_error == pytest.approx(0.03 / 11**0.5)


def test_an_average_with_a_hole_is_no_average() -> None:
    found = [one for one in eleven() if one.set not in {"cars", "dtd"}]
    assert averages(found) == ()
    assert holes(("fff11",), [one.set for one in found]) == {"fff11": ["cars", "dtd"]}
    assert "iwildcam" in " ".join(holes(("datacomp",), [])["datacomp"])


def test_another_protocol_makes_another_average() -> None:
    plain, slip = averages([*eleven(), measured("imagenet1k@slip", acc1=0.9, mean_per_class_recall=0.9)])
    assert (plain.set, slip.set) == ("fff11", "fff11@slip")
    assert slip.protocol_id != plain.protocol_id
    assert slip.metrics["acc1"].value == pytest.approx(plain.metrics["acc1"].value + (0.9 - 0.5) / 11)


def test_retrieval_is_averaged_over_directions_and_sets() -> None:
    recalls = [{"image_retrieval_recall_at_1": 0.2, "text_retrieval_recall_at_1": 0.4}] * 2
    both = [measured(name, True, **one) for name, one in zip(SUITES["retrieval"].members, recalls, strict=True)]
    (average,) = averages(both)
    assert average.metrics["average"].value == pytest.approx(0.3)
    assert average.metrics["text_retrieval_recall@1"].value == pytest.approx(0.4)
