"""Reading clip-benchmark's local layout: as clip-benchmark reads it, and what is said about one that is not right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clip_benchmark.datasets.builder import build_dataset

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation
from harness.evaluation.layout import check_templates, describe, locate
from harness.evaluation.sets import EvaluationSet, read_set

from .worlds import (
    Member,
    classification_files,
    classification_members,
    classification_set,
    picture,
    retrieval_members,
    retrieval_set,
    write_set,
    write_shard,
)

webdataset_warns = pytest.mark.filterwarnings("ignore:WebDataset:UserWarning")


@webdataset_warns
def test_samples_are_those_of_clip_benchmark_in_its_order(tmp_path: Path) -> None:
    path = classification_set(tmp_path / "things")
    ours = read_set(path)
    theirs = build_dataset("wds/things", root=str(path), transform=np.asarray, split="test")
    pairs = list(theirs)
    assert list(ours.labels) == [label for _, label in pairs]
    assert all((np.asarray(ours.image(i)) == image).all() for i, (image, _) in enumerate(pairs))
    assert list(ours.layout.classnames) == theirs.classes
    assert list(ours.layout.templates) == theirs.templates
    assert (len(ours), ours.name, ours.task) == (24, "things", "zeroshot_classification")


@webdataset_warns
def test_captions_are_those_of_clip_benchmark(tmp_path: Path) -> None:
    texts = [["a cat ", "two\x0blines", "", "drei Äpfel"], ["one"], ["last", ""]]
    path = write_set(tmp_path / "pictures", [retrieval_members(texts)], {"dataset_type.txt": "Retrieval\n"})
    ours = read_set(path)
    theirs = build_dataset("wds/x", root=str(path), transform=None, split="test", task="zeroshot_retrieval")
    assert [list(captions) for captions in ours.captions] == [captions for _, captions in theirs]
    assert ours.task == "zeroshot_retrieval"


@webdataset_warns
def test_odd_members_are_taken_as_webdataset_takes_them(tmp_path: Path) -> None:
    members: list[Member] = [
        ("__meta__/notes.json", b"{}"),
        ("folder.with.dots/a.CLS", b" 1\n"),
        ("folder.with.dots/a.png", picture(1)),
        ("folder.with.dots/a.json", b"{}"),
        ("b.jpg", picture(2, "jpg")),
        ("b.webp", picture(3, "webp")),
        ("b.cls", b"0"),
        ("noextension", b""),
    ]
    path = write_set(tmp_path / "odd", [members], classification_files(2))
    ours = read_set(path)
    theirs = list(build_dataset("wds/odd", root=str(path), transform=np.asarray, split="test"))
    assert ours.keys == ("folder.with.dots/a", "b")
    assert list(ours.labels) == [label for _, label in theirs] == [1, 0]
    assert all((np.asarray(ours.image(i)) == image).all() for i, (image, _) in enumerate(theirs))


def test_digest_knows_samples_but_not_shards_or_place(tmp_path: Path) -> None:
    def digest(name: str, shards: list[list[Member]]) -> str:
        return read_set(write_set(tmp_path / name, shards, classification_files(3))).digest

    labels = [0, 1, 2, 1]
    one = digest("one", [classification_members(labels)])
    assert digest("two", [classification_members(labels[:3]), classification_members(labels[3:], 3)]) == one
    assert digest("labels", [classification_members([0, 1, 2, 2])]) != one
    assert digest("pixels", [[*classification_members(labels)[:-1], ("s0000003.png", picture(9))]]) != one
    assert digest("fewer", [classification_members(labels[:3])]) != one
    assert digest("order", [classification_members(labels[2:], 2) + classification_members(labels[:2])]) != one


def test_description_needs_no_heavy_library(tmp_path: Path) -> None:
    path = classification_set(tmp_path / "things")
    code = (
        "import sys; from pathlib import Path; from harness.evaluation.layout import describe; "
        f"print(describe(Path({str(path)!r})).name, {{'torch', 'numpy', 'PIL', 'open_clip'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "things set()"


def test_description_counts_and_names(tmp_path: Path) -> None:
    layout = describe(classification_set(tmp_path / "things", shards=2, classes=4), name="other")
    assert (layout.name, len(layout.shards), len(layout.classnames), len(layout.templates)) == ("other", 2, 4, 3)
    assert describe(retrieval_set(tmp_path / "pictures")).task == "zeroshot_retrieval"


def test_templates_come_from_the_set_or_the_spec(tmp_path: Path) -> None:
    path = broken(tmp_path, templates=None)
    check_templates(describe(path), Evaluation(templates="imagenet7"))
    check_templates(describe(retrieval_set(tmp_path / "pictures")), Evaluation())
    with pytest.raises(
        DataError, match=r"templates.txt: there are no prompt templates; .* or give evaluation.templates"
    ):
        check_templates(describe(path), Evaluation())


def test_locate(tmp_path: Path) -> None:
    root, own = tmp_path / "root", tmp_path / "own"
    pets = classification_set(root / "vtab" / "pets", shards=1)
    mine = classification_set(own / "mine", shards=1)
    embedded = {"shapes": tmp_path / "store" / "shapes"}

    def found(reference: str) -> Path:
        return locate(reference, evaluation_root=root, embedded=embedded, relative_to=own)

    assert found("shapes") == embedded["shapes"]
    assert found("vtab/pets") == pets
    assert found("mine") == found("./mine") == found(str(mine)) == mine
    with pytest.raises(DataError, match='no evaluation set "shape"; did you mean "shapes"'):
        found("shape")
    with pytest.raises(DataError, match='did you mean "vtab/pets"'):
        found("vtab/pet")
    with pytest.raises(DataError, match="known sets: shapes, vtab/pets"):
        found("imagenet")
    with pytest.raises(DataError, match="known sets: none"):
        locate("imagenet", evaluation_root=None, embedded={}, relative_to=own)


def broken(tmp_path: Path, **changes: str | None) -> Path:
    """A classification set of two shards with some of its files replaced, or taken away by None."""
    path = classification_set(tmp_path / "broken", shards=2)
    files = {"nshards": "test/nshards.txt", "classes": "classnames.txt", "shard": "test/1.tar"}
    files |= {"templates": "zeroshot_classification_templates.txt", "kind": "dataset_type.txt"}
    for name, text in changes.items():
        if text is None:
            (path / files[name]).unlink()
        else:
            (path / files[name]).write_text(text)
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nshards": None}, "nshards.txt: is missing; write the number of shards"),
        ({"nshards": "two"}, "nshards.txt: does not contain a number of shards"),
        ({"nshards": "0"}, "nshards.txt: does not contain a number of shards"),
        ({"nshards": "3"}, "2.tar: the shard is missing"),
        ({"shard": None}, "1.tar: the shard is missing"),
        ({"classes": None}, "classnames.txt: a classification set needs class names"),
        ({"classes": ""}, "classnames.txt: a classification set needs class names"),
        ({"classes": "a\n\nb"}, "classnames.txt: line 2 is empty"),
        ({"templates": "a photo"}, 'templates.txt: template "a photo" has no {c} where the class name goes'),
        ({"templates": "a {c}\n\n"}, 'templates.txt: template "" has no {c}'),
        ({"templates": "{a} {c}"}, "has braces other than {c}"),
        ({"kind": "captioning"}, 'dataset_type.txt: "captioning" sets are not evaluated'),
    ],
)
def test_what_is_wrong_with_the_text_files(tmp_path: Path, changes: dict[str, str | None], sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        describe(broken(tmp_path, **changes))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_class_names_that_are_no_text(tmp_path: Path) -> None:
    path = broken(tmp_path)
    (path / "classnames.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"classnames.txt: cannot be read .*; repair the file"):
        describe(path)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([], "holds no samples"),
        ([("a.png", picture(0))], 'sample "a" has no .cls file'),
        ([("a.cls", b"0")], 'sample "a" has no image; add a.jpg, .png or .webp'),
        (classification_members([0, 2]), "sample \"s0000001\" has the label '2', and there are 2 classes"),
        (classification_members([-1]), "has the label '-1'"),
        ([("a.png", picture(0)), ("a.cls", b"cat")], "has the label 'cat', and there are 2 classes"),
        ([("a.png", picture(0)), ("a.cls", b"0"), ("a.cls", b"1")], 'sample "a" has two .cls files'),
    ],
)
def test_what_is_wrong_with_a_classification_sample(tmp_path: Path, members: list[Member], sentence: str) -> None:
    path = write_set(tmp_path / "broken", [members], classification_files(2))
    with pytest.raises(DataError) as raised:
        read_set(path)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        (retrieval_members([["one"], []]), 'sample "s0000001" has no captions; write them into s0000001.txt'),
        (retrieval_members([[" ", ""]]), 'sample "s0000000" has no captions'),
        (classification_members([0]), 'sample "s0000000" has no .txt file'),
        ([("a.png", picture(0)), ("a.txt", b"\xff")], 'sample "a" has a .txt file that is not UTF-8'),
    ],
)
def test_what_is_wrong_with_a_retrieval_sample(tmp_path: Path, members: list[Member], sentence: str) -> None:
    path = write_set(tmp_path / "broken", [members], {"dataset_type.txt": "retrieval"})
    with pytest.raises(DataError) as raised:
        read_set(path)
    assert sentence in str(raised.value)


@pytest.mark.parametrize("content", [b"no image", picture(0)[:200], b""])
def test_an_image_that_cannot_be_decoded(tmp_path: Path, content: bytes) -> None:
    path = write_set(tmp_path / "broken", [[("a.png", content), ("a.cls", b"0")]], classification_files(2))
    evaluation_set = read_set(path)
    with pytest.raises(DataError, match=r'0.tar: the image of sample "a" cannot be decoded .* leaves no sample out'):
        evaluation_set.image(0)


@pytest.mark.parametrize("keep", [3, 700, 1500, 10 * 512, -2 * 512])
def test_a_shard_that_was_cut_off(tmp_path: Path, keep: int) -> None:
    path = classification_set(tmp_path / "broken")
    shard = path / "test" / "1.tar"
    whole = shard.read_bytes().rstrip(b"\0")
    shard.write_bytes((whole + bytes(-len(whole) % 512))[:keep])
    with pytest.raises(DataError, match=r"1.tar: the shard cannot be read .*; write or copy it again"):
        read_set(path)


def test_a_set_is_read_from_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    path = tmp_path / "pictures"
    write_shard(path / "test" / "0.tar", retrieval_members([["one", "two"]]))
    (path / "test" / "nshards.txt").write_text("1")
    (path / "dataset_type.txt").write_text("retrieval")
    evaluation_set = read_set(path, "renamed")
    assert isinstance(evaluation_set, EvaluationSet)
    assert (evaluation_set.name, evaluation_set.captions, evaluation_set.labels) == ("renamed", (("one", "two"),), ())
    assert evaluation_set.image(0).size == (40, 36)


def test_a_byte_order_mark_is_no_part_of_a_name_or_caption(tmp_path: Path) -> None:
    files = {name: "\ufeff" + text for name, text in classification_files(3).items()}
    path = write_set(tmp_path / "marked", [classification_members([0, 1, 2])], files)
    (path / "test" / "nshards.txt").write_text("\ufeff1\r\n", encoding="utf-8")
    plain = write_set(tmp_path / "plain", [classification_members([0, 1, 2])], classification_files(3))
    assert describe(path).classnames == describe(plain).classnames
    assert describe(path).templates == describe(plain).templates
    captions = [[("a.png", picture(0)), ("a.txt", "\ufeffone\ntwo".encode())]]
    assert read_set(write_set(tmp_path / "r", captions, {"dataset_type.txt": "\ufeffretrieval"})).captions == (
        ("one", "two"),
    )


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_all_ends_of_lines_are_read(tmp_path: Path, ends: str) -> None:
    path = write_set(tmp_path / "x", [classification_members([0, 1])], classification_files(2))
    (path / "classnames.txt").write_bytes(ends.join(["cat", "dog", ""]).encode())
    assert describe(path).classnames == ("cat", "dog")


@pytest.mark.parametrize("file", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_separators_that_editors_do_not_show_are_refused(tmp_path: Path, file: str) -> None:
    path = write_set(tmp_path / "x", [classification_members([0, 1])], classification_files(2))
    (path / file).write_text("a {c}\nb\u2028 {c}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{file}: line 2 holds the line separator U\+2028"):
        describe(path)


def test_more_shards_than_are_counted_are_refused(tmp_path: Path) -> None:
    path = classification_set(tmp_path / "things", shards=3)
    (path / "test" / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"nshards.txt: says 2, and there is 2.tar too"):
        describe(path)
    (path / "test" / "2.tar").rename(path / "test" / "of-the-author.tar")
    assert len(describe(path).shards) == 2


def test_what_looks_wrong_about_a_set_is_said_and_moves_its_digest(tmp_path: Path) -> None:
    def read(name: str, texts: list[list[str]]) -> EvaluationSet:
        return read_set(write_set(tmp_path / name, [retrieval_members(texts)], {"dataset_type.txt": "retrieval"}))

    plain = read("plain", [["one", "two"], ["three"]])
    blank = read("blank", [["one", "two", " ", ""], ["three", "", "x"]])
    cut = read("cut", [["one", "two"], ["thr\u2028ee"]])
    assert plain.notes == ()
    # "one\ntwo\n \n" ends with a line end, which begins no line
    assert blank.notes == ("2 of 6 captions are blank lines, and each is a query",)
    assert cut.notes == ("1 samples have captions with a line separator (U+2028 or its like) that cuts them",)
    assert len({plain.digest, blank.digest, cut.digest}) == 3

    files = classification_files(3) | {"classnames.txt": "cat\ndog\ncat\nemu\n"}
    things = read_set(write_set(tmp_path / "things", [classification_members([0, 1, 2])], files))
    assert things.notes == (
        "1 class names appear there more than once ('cat' first)",
        "1 of 4 class names have no sample ('emu' first)",
    )
    assert read_set(write_set(tmp_path / "all", [classification_members([0, 1])], classification_files(2))).notes == ()
