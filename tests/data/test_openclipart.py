from __future__ import annotations

import json
import math
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from harness.base.errors import DataError, SpecError
from harness.cli.data import data_app
from harness.config.data import OpenclipartData
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.openclipart import build, measured, package, render, words
from harness.data.openclipart.split import CLASSES, class_of, split
from harness.data.synthetic.captions import SILENT
from harness.data.synthetic.embedded import embedded_sets, home
from harness.data.synthetic.materialise import materialise
from harness.data.synthetic.shapes import Pixels
from tests.data.drawings import SMALL, blobs, known, svg, write_deb, write_package
from tests.data.test_embedded import read_by_clip_benchmark


@pytest.fixture
def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_package(tmp_path / "svg")
    known(monkeypatch, folder)
    return folder


def made(tmp_path: Path, drawings: Path, data: OpenclipartData = SMALL) -> tuple[Dataset, Path, dict[str, object]]:
    cache = tmp_path / "cache"
    materialise(data, cache, drawings)
    counts = json.loads((home(data, cache) / build.COUNTS).read_text())
    return open_dataset(data, cache), cache, counts


def pixels_of(body: str, size: tuple[str, str] = ("100", "100")) -> Pixels:
    drawn = render.render(svg(body, size=size))
    assert drawn is not None
    return drawn


def test_texts_are_read_as_their_authors_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = '<rect width="9" height="9"/>'
    latin = svg(body, "Käse", ("food ", "", "Fruit"), "two\nlines", encoding="iso-8859-1")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cheese.svg").write_bytes(latin)
    (tmp_path / "a" / "bare.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "a" / "odd.svg").write_text("<svg")
    known(monkeypatch, tmp_path)
    read, left_out = package.drawings(tmp_path, "0.18")
    assert [(one.name, one.title, one.keywords, one.description) for one in read] == [
        ("a/bare.svg", "", (), ""),
        ("a/cheese.svg", "Käse", ("food", "Fruit"), "two lines"),
    ]
    assert left_out == {"not readable as XML": 1}


def test_the_digest_is_that_of_sha256sum(drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "find . -type f -name '*.svg' | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", listed], cwd=drawings, capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == package.DIGESTS["0.18"]
    (drawings / "fish_0.svg").write_bytes(svg(blobs(1)))
    with pytest.raises(DataError, match=r"71 drawings with the digest .*, not those of openclipart-svg 0\.18"):
        package.drawings(drawings, "0.18")


def test_a_debian_package_is_read_like_its_folder(tmp_path: Path, drawings: Path) -> None:
    with package.located(write_deb(tmp_path / "x.deb", drawings)) as unpacked:
        assert package.drawings(unpacked, "0.18") == package.drawings(drawings, "0.18")
    for content in (b"", b"!<arch>\n", (tmp_path / "x.deb").read_bytes()[:3000]):
        (tmp_path / "bad.deb").write_bytes(content)
        with pytest.raises(DataError, match="not a Debian package"), package.located(tmp_path / "bad.deb"):
            pass


def test_a_sentence_says_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "INSTALLED", tmp_path / "nowhere")
    with pytest.raises(DataError, match="openclipart-svg is missing; apt-get install openclipart-svg"):
        materialise(SMALL, tmp_path / "cache")
    monkeypatch.setattr(render, "RENDERER", "0.0.1")
    with pytest.raises(DataError, match=rf"resvg-py is {version('resvg-py')}, not 0\.0\.1; pip install"):
        materialise(SMALL, tmp_path / "cache")


def test_drawings_are_cropped_and_padded_on_white() -> None:
    drawn = pixels_of('<rect x="30" y="5" width="10" height="40" fill="#ff0000"/>', ("40pt", "40pt"))
    assert drawn.shape[0] == drawn.shape[1]
    assert drawn[len(drawn) // 2, len(drawn) // 2].tolist() == [255, 0, 0]
    assert (drawn[:, 0] == 255).all()
    red = (drawn == [255, 0, 0]).all(axis=2)
    assert red.any(axis=1).sum() > 3 * red.any(axis=0).sum(), "four times as high as wide"
    assert render.render(svg("")) is None
    assert render.render(svg("<text x='5' y='50'>words</text>")) is None
    assert render.render(b"<svg") is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('<circle cx="50" cy="50" r="40" fill="#dd1010"/>', ("red", "one colour", "solid", "symmetric", "square")),
        ('<rect x="10" width="15" height="90" fill="#1030dd"/>', ("blue", "one colour", "thin", "symmetric", "tall")),
        (
            '<rect width="60" height="40" fill="#106010"/><rect x="60" width="40" height="40" fill="#ffe11e"/>',
            ("green", "two colours", "light", "asymmetric", "wide"),
        ),
        (
            '<path d="M0 0h90v90h-90z" fill="none" stroke="#777" stroke-width="2"/>',
            ("grey", "one colour", "thin", "symmetric", "square"),
        ),
    ],
)
def test_attributes_of_known_drawings(body: str, expected: tuple[str, ...]) -> None:
    values = measured.attributes(pixels_of(body))
    assert tuple(measured.VOCABULARY[column][value][0] for column, value in enumerate(values)) == expected


def test_the_hash_is_the_sign_of_low_frequencies() -> None:
    """Against the definition of the cosine transform, written as sums."""
    drawn = pixels_of(blobs(3))
    grey = np.asarray(Image.fromarray(drawn).convert("L").resize((32, 32), Image.Resampling.BOX)).astype(float)
    basis = [
        [math.cos(math.pi * (2 * x + 1) * u / 64) * (1 if u else math.sqrt(0.5)) for x in range(32)] for u in range(8)
    ]
    low = [sum(a * b * v for a, r in zip(basis[u], grey, strict=True) for b, v in zip(basis[w], r, strict=True))
           for u in range(8) for w in range(8)][1:]  # fmt: skip
    middle = sorted(low)[31]
    assert measured.perceptual_hash(drawn) == sum(2**place for place, value in enumerate(low) if value > middle)


def test_the_hash_tells_drawings_apart_and_not_their_colour() -> None:
    one, recoloured, other = (
        measured.perceptual_hash(pixels_of(blobs(seed, colour)))
        for seed, colour in ((1, "black"), (1, "#222266"), (2, "black"))
    )
    assert (one ^ recoloured).bit_count() <= 4
    assert (one ^ other).bit_count() > 16
    near = measured.neighbours(np.array([one, other, recoloured], dtype=np.uint64), 8)
    assert [some.tolist() for some in near] == [[2], [], [0]]


def test_nothing_in_training_resembles_what_is_tested() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**12, 300, dtype=np.uint64)
    classes = rng.integers(-1, 4, 300).tolist()
    own = np.ones((300, 3), dtype=np.bool_)
    data = OpenclipartData(train_samples=60, test_per_class=5, retrieval_samples=9, near_duplicate=1)
    near = measured.neighbours(hashes, 1)
    parts = split(data, classes, own, near)
    tested = [*parts.tested.tolist(), *parts.retrieval.tolist()]
    assert len(set(tested)) == len(tested) == 4 * 5 + 9
    assert parts.labels == [classes[number] for number in parts.tested]
    assert all(classes[number] == -1 for number in parts.retrieval)
    for number in tested:
        others = [*parts.train.tolist(), *(one for one in tested if one != number)]
        assert all((int(hashes[number]) ^ int(hashes[one])).bit_count() > 1 for one in others)
    assert len(parts.train) == 60
    beside = {int(one) for number in tested for one in near[number]}
    assert parts.left_out == {
        "near-duplicate of a tested drawing": len(beside),
        "not drawn": 300 - len(tested) - len(beside) - 60,
    }
    again, other = split(data, classes, own, near), split(data.model_copy(update={"seed": 1}), classes, own, near)
    assert again.train.tolist() == parts.train.tolist() != other.train.tolist()
    with pytest.raises(DataError, match=r"only \d+ drawings are left to train on; set it to at most"):
        split(data.model_copy(update={"train_samples": 280}), classes, own, near)


def test_a_drawing_of_two_classes_is_of_none() -> None:
    names = list(CLASSES)
    assert names[class_of(["Fish", "animal"])] == "fish"
    assert class_of(["fish", "bird"]) == class_of(["animal"]) == -1


def test_words_are_compared_without_case_and_plural() -> None:
    assert words.words_in("Flags_of_the Grass-LANDS, 2 ax") == {"flag", "the", "grass", "land"}


@pytest.mark.parametrize("error_rate", [0.0, 0.3, 1.0])
def test_the_error_rate_is_that_of_the_captions(tmp_path: Path, drawings: Path, error_rate: float) -> None:
    captioner = {"error_rate": error_rate, "captions": 20, "attribute_probability": 0.5}
    data = OpenclipartData.model_validate({**SMALL.model_dump(), "captioner": captioner})
    found, _ = package.drawings(drawings, "0.18")
    drawn = build._drawn(data, found)
    chosen = np.arange(len(drawn.drawings))
    made = build._pseudo(data, "captioner", drawn, chosen)
    assert abs(made.wrong / made.named - error_rate) < 0.03
    lexicon = {word: place for place, word in enumerate(drawn.lexicon)}
    wrong = 0
    for number, captions in enumerate(made.texts):
        for position, text in enumerate(captions):
            named = {lexicon[word] for word in words.words_in(text) if word in lexicon}
            assert named == set(np.flatnonzero(made.words[number, position]).tolist()), text
            wrong += sum(not drawn.words[number, word] for word in named)
    total = int(made.words.sum())
    assert abs(wrong / total - error_rate) < 4 * math.sqrt(0.25 / total)
    assert (drawn.attributes != SILENT).all()


def test_the_retrieval_captions_have_no_errors(drawings: Path) -> None:
    found, _ = package.drawings(drawings, "0.18")
    drawn = build._drawn(SMALL, found)
    assert build._pseudo(SMALL, "retrieval", drawn, np.arange(9)).wrong == 0


def test_what_is_made_is_read_by_others(tmp_path: Path, drawings: Path) -> None:
    dataset, cache, counts = made(tmp_path, drawings)
    assert len(dataset) == SMALL.size() == counts["trained"] == 24
    assert counts["drawings"] == 71
    raw = {dataset.raw(i) for i in range(len(dataset))}
    allowed = {text for one in package.drawings(drawings, "0.18")[0]
               for text in (one.title, ", ".join(one.keywords), one.description)}  # fmt: skip
    assert raw <= allowed
    assert len(raw & {"Made by hand", "Again"}) > 0, "noise as it is"
    sets = embedded_sets(SMALL, cache)
    _, images, labels = read_by_clip_benchmark(sets["openclipart"])
    assert sorted({list(CLASSES)[label] for label in labels}) == ["bird", "fish"]
    assert len(images) == 6
    _, images, texts = read_by_clip_benchmark(sets["openclipart_retrieval"], task="zeroshot_retrieval")
    assert len(images) == 6
    assert all(len(some) == 5 for some in texts)
    left_out = counts["left_out"]
    assert isinstance(left_out, dict)
    assert left_out["nothing drawn, or only text"] == 1
    assert sum(left_out.values()) + 24 + 6 + 6 == 71


def test_making_it_twice_gives_the_same_and_another_seed_does_not(tmp_path: Path, drawings: Path) -> None:
    first, second = (made(tmp_path / name, drawings)[2]["content_sha256"] for name in ("a", "b"))
    other = made(tmp_path / "c", drawings, SMALL.model_copy(update={"seed": 1}))[2]["content_sha256"]
    assert first == second != other


def test_the_command_makes_the_data_and_says_what_it_made(tmp_path: Path, drawings: Path) -> None:
    spec = tmp_path / "mine.toml"
    fields = ", ".join(
        f"{name} = {getattr(SMALL, name)}" for name in ("train_samples", "test_per_class", "retrieval_samples")
    )
    spec.write_text(f'data = {{ kind = "openclipart", {fields} }}\nmodel.name = "micro-resnet"\n'
                    '[train]\nduration = "1 steps"\nglobal_batch_size = 8\n')  # fmt: skip
    shown = CliRunner().invoke(data_app, ["openclipart", str(spec), "--package", str(drawings)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "71 drawings: 24 to train on with 264 captions" in shown.output
    assert "openclipart 6, openclipart_retrieval 6 (2 classes)" in shown.output
    spec.write_text(spec.read_text().replace("openclipart", "shapes").replace(f", {fields}", ""))
    with pytest.raises(SpecError, match=r'set data\.kind = "openclipart"'):
        CliRunner().invoke(data_app, ["openclipart", str(spec)], catch_exceptions=False)
