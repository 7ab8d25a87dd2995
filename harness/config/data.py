"""Training data: the embedded worlds, drawings from a package, your own webdataset shards, or a table of images."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Never

from pydantic import Field, field_validator, model_validator

from harness.base.errors import SpecError
from harness.config.base import Spec
from harness.config.sources import PLACE, ColumnSource, PlaceSource

Share = Annotated[float, Field(ge=0, le=1)]

PATH_FIELDS = ("shards", "path", "image_root", "quarantine")
"""Fields that hold a path. The data's content is part of a run's identity, its location is not."""
READING_FIELDS = ("split", "separator", "quoting", "repeats")
"""Fields that decide which samples are read, and so the content, which identifies the data."""
LATER_FIELDS = frozenset((*READING_FIELDS, "least_share", "pictures"))
"""Fields that provisional ids leave out unless they are stated, because older ids had none."""


class RawCaptions(Spec):
    """Faults of the captions that come with the pictures, modelled on alt-texts of the web."""

    generic: Share = 0.3
    """Share of pictures whose caption says nothing about them ("stock photo")."""
    partial: Share = 0.3
    """Share of pictures whose caption names a single attribute; all others name the two main ones."""
    partial_error: Share = 0.1
    """Probability that the attribute in a partial caption is wrong."""
    error: Share = 0.2
    """Probability, for each attribute of a full caption, that it is wrong."""

    @model_validator(mode="after")
    def _shares_fit(self) -> RawCaptions:
        if self.generic + self.partial > 1:
            raise ValueError(f"generic + partial is {self.generic + self.partial:g}, more than the whole; lower one")
        return self


class Captioner(Spec):
    """A simulated captioner: it reads the true attributes, leaves some out and gets some wrong."""

    captions: int = Field(5, ge=1, le=20)
    """Pseudo-captions for each picture."""
    attribute_probability: Share = 0.6
    """Probability of naming an attribute other than the main one, which is always named."""
    error_rate: Share = 0.08
    """Probability that a named attribute is wrong."""


class VerboseCaptioner(Captioner):
    """A simulated captioner that names more attributes and makes more errors."""

    attribute_probability: Share = 0.8
    """Probability of naming an attribute other than the main one, which is always named."""
    error_rate: Share = 0.16
    """Probability that a named attribute is wrong."""


class DataSpec(Spec):
    """Base of every kind of data, which is an `EmbeddedWorld` or a `FileSpec`."""

    evaluation_sets: ClassVar[tuple[str, ...]]
    """Names of the evaluation sets that come with it."""
    has_approximate_truth: ClassVar[bool] = False
    """Whether precision and recall of mining are measured against a truth that is only approximate."""
    is_mixture: ClassVar[bool] = False
    """Whether it has several sources, which batches can tell apart."""

    @abstractmethod
    def caption_sources(self) -> Mapping[str, int | None]:
        """Names of its pseudo-caption sources, with the captions of each image where the spec determines them."""


class EmbeddedWorld(DataSpec):
    """Data that is generated. Its code is registered in `harness.data.synthetic.generate.generators`."""

    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`."""

    def caption_sources(self) -> Mapping[str, int | None]:
        """Both simulated captioners, with their captions per picture."""
        return {"captioner": self.captioner.captions, "captioner_b": self.captioner_b.captions}

    @abstractmethod
    def size(self) -> int:
        """Pictures to train on."""


class ShapesData(EmbeddedWorld):
    """The embedded world: pictures of one object each, with known shape, colour, background and size."""

    kind: Literal["shapes"] = "shapes"
    evaluation_sets: ClassVar[tuple[str, ...]] = ("shapes", "shapes_retrieval")
    train_samples: int = Field(8192, ge=1)
    """Pictures to train on."""
    test_samples: int = Field(1500, ge=1)
    """Pictures of the evaluation set `shapes`, drawn evenly over its classes (shape x colour)."""
    image_size: int = Field(32, ge=16, le=512)
    """Side of the square pictures in pixels."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the world. It is part of the data, unlike the seed of a run."""
    shapes: int = Field(6, ge=2, le=8)
    """Number of shapes, in this order: circle, square, triangle, star, cross, ring, diamond, moon."""
    colours: int = Field(6, ge=2, le=8)
    """Number of colours, in this order: red, green, blue, yellow, purple, orange, pink, brown."""
    backgrounds: int = Field(4, ge=1, le=6)
    """Number of backgrounds, in this order: white, black, striped, grey, checkered, dotted."""
    sizes: int = Field(2, ge=1, le=3)
    """Number of sizes, in this order: large, small, tiny."""
    skew: float = Field(0.8, ge=0, le=4)
    """Skew of the shapes and colours, drawn with weight 1 / (rank + 2)^skew: every batch then has near-duplicates.
    0 draws them evenly."""
    pixel_noise: float = Field(12.0, ge=0, le=100)
    """Standard deviation of the noise on each pixel, in grey levels of 255."""
    synonyms: Share = 0.15
    """Probability of replacing a word of a caption by a synonym ("large" by "big")."""
    raw: RawCaptions = RawCaptions()
    """Faults of the raw captions. Full captions name shape and colour."""
    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`, which always names the shape."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`, which names more attributes and makes more errors."""

    def size(self) -> int:
        """`train_samples`."""
        return self.train_samples


class DigitsData(EmbeddedWorld):
    """scikit-learn's 1,797 handwritten digits with simulated noisy captions; most negatives are false."""

    kind: Literal["digits"] = "digits"
    evaluation_sets: ClassVar[tuple[str, ...]] = ("digits",)
    test_samples: int = Field(500, ge=10, le=1000)
    """Pictures of the evaluation set `digits`, drawn evenly over the ten classes. The others are for training."""
    image_size: int = Field(32, ge=8, le=512)
    """Side in pixels to which the 8 x 8 originals are enlarged."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the split and the captions. It is part of the data, unlike the seed of a run."""
    synonyms: Share = 0.15
    """Probability of replacing a word of a caption by a synonym ("seven" by "7")."""
    raw: RawCaptions = RawCaptions()
    """Faults of the raw captions. Full captions name digit and parity."""
    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`, which always names the digit, and sometimes whether it is odd or even."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`, which names more attributes and makes more errors."""

    def size(self) -> int:
        """The digits outside the evaluation set."""
        return 1797 - self.test_samples


class OpenclipartData(EmbeddedWorld):
    """Drawings by many people with their own titles, keywords and descriptions: Debian's package `openclipart-svg`, of
    which nothing comes with the harness. `harness data openclipart` says what it makes of them."""

    kind: Literal["openclipart"] = "openclipart"
    evaluation_sets: ClassVar[tuple[str, ...]] = ("openclipart", "openclipart_retrieval")
    has_approximate_truth: ClassVar[bool] = True
    version: Literal["0.18"] = "0.18"
    """Version of the package. Its drawings have to have the digest that the harness knows."""
    train_samples: int = Field(5760, ge=1)
    """Drawings to train on, drawn from all that are neither tested nor near-duplicates of tested ones."""
    test_per_class: int = Field(24, ge=1)
    """Drawings of each class in the evaluation set `openclipart`; at most half of those that could be tested."""
    retrieval_samples: int = Field(400, ge=1)
    """Drawings of the evaluation set `openclipart_retrieval`."""
    near_duplicate: int = Field(8, ge=0, le=62)
    """Two drawings are near-duplicates if at most so many of the 63 bits of their perceptual hashes differ."""
    image_size: int = Field(32, ge=16, le=256)
    """Side of the square pictures in pixels."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the split and the captions. It is part of the data, unlike the seed of a run."""
    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`. It always names a keyword and the main colour."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`, which names more attributes and makes more errors."""

    def size(self) -> int:
        """`train_samples`."""
        return self.train_samples


Verify = Literal["header", "decode"]
_VERIFY_DOC = """How images are checked once, before the first run. `header` reads each header and end (about 0.1 ms an
image) and decodes only suspicious ones; `decode` decodes every image (about 2 ms at 256 px). Samples that fail are left
out, counted and reported."""


class Pictures(Spec):
    """How image files become RGB. The defaults are open_clip's (Pillow's `convert("RGB")`), except that pictures of 16
    bits are scaled, where Pillow clips nearly every pixel to white."""

    exif: Literal["ignore", "apply"] = "ignore"
    """Whether to rotate a picture according to its EXIF orientation."""
    alpha: Literal["drop", "white", "black"] = "drop"
    """Whether to drop transparency, or to lay the picture over white or black."""
    cmyk: Literal["convert", "reject"] = "convert"
    """Whether to convert CMYK pictures without their colour profile, or to leave them out and count them."""


class FileSpec(DataSpec):
    """Data that is read from files. Its code is registered in `harness.data.sources.formats.file_formats`."""

    evaluation_sets: ClassVar[tuple[str, ...]] = ()

    verify: Verify = Field("header", description=" ".join(_VERIFY_DOC.split()))
    quarantine: str | None = None
    """A quarantine list from `harness data check`. Its samples are left out and counted. A shard on the list is read
    up to its damage instead of being refused. Relative to the spec file."""
    least_share: Share = 0.95
    """Smallest share of samples that must be usable. A lower share is an error that lists the reasons. Samples on the
    quarantine list do not count."""
    split: str | None = None
    """The split to read, if the file names of a folder or glob name several (`train`, `validation`, `test`)."""
    pictures: Pictures = Pictures()
    """How image files become RGB."""

    def irrelevant(self) -> frozenset[str]:
        """Paths and how files are read: the content's fingerprint identifies the data."""
        return frozenset((*PATH_FIELDS, *READING_FIELDS, "least_share"))

    @property
    @abstractmethod
    def location(self) -> str:
        """The path, pattern or URL of its samples."""


class WebdatasetData(FileSpec):
    """Shards as img2dataset and webdataset write them: tar files with KEY.jpg, KEY.txt, KEY.json."""

    kind: Literal["webdataset"] = "webdataset"
    shards: str
    """A tar file, a folder of them, a glob or a brace pattern: `cc3m/{00000..00575}.tar`; several are joined by `::`.
    img2dataset's `files` layout is a folder too. Relative to the spec file. A URL (`s3://`, `https://`) is copied here
    once by `harness data fetch`."""
    raw: str = Field("txt", pattern=PLACE)
    """The raw caption: the extension of a text member (`txt`) or a key of a JSON member (`json:caption`)."""
    pseudo: dict[str, PlaceSource] = Field(default={"captions": "json:captions"})
    """Names and locations of pseudo-caption sources. A location is `json:KEY` (a text or a list of texts), the
    extension of a text member with one caption per line, either of them with a `split`, or files beside the shards
    (`path`). A sample that lacks captions from a source is left out and counted. A source that no sample has is
    ignored until an experiment uses it."""

    @field_validator("pseudo")
    @classmethod
    def _sources(cls, value: dict[str, PlaceSource]) -> dict[str, PlaceSource]:
        return {_source_name(name): _place(source) for name, source in value.items()}

    def caption_sources(self) -> Mapping[str, int | None]:
        """The declared sources."""
        return dict.fromkeys(self.pseudo)

    @property
    def location(self) -> str:
        """The shards."""
        return self.shards


class TableData(FileSpec):
    """CSV, TSV or Parquet tables with a column of images (paths, or whole files as Hugging Face embeds them in Parquet)
    and one or more columns of captions."""

    kind: Literal["table"] = "table"
    path: str
    """The table: `.csv`, `.tsv` or `.parquet`; a folder, glob or brace pattern of `.parquet` files. Relative to the
    spec file. A URL is copied here once by `harness data fetch`."""
    image_root: str | None = None
    """Folder that the image paths are relative to; by default the table's own. Relative to the spec file."""
    image: str = "image"
    """Column of image paths, or of image files (`bytes`, or Hugging Face's struct of `bytes` and `path`)."""
    key: str | None = None
    """Column of the samples' keys. Default: the image path, which makes rows with one image repeats; for embedded
    images, the table's name and row."""
    separator: str | None = Field(None, min_length=1, max_length=1)
    """Separator of a text table. Default: from the file name (`.csv`, `.tsv`). If the header contains the columns only
    with another separator (tab, comma, semicolon or bar), that one is used and reported."""
    quoting: bool | None = None
    """Whether cells of a text table may be in double quotes. Default: yes in `.csv`; in `.tsv`, if every cell that
    begins with a quote ends with one."""
    repeats: Literal["first", "captions", "samples"] = "first"
    """How to read several rows of one image (or key). `first`: leave out and count all but the first. `captions`: one
    sample, with the raw caption of the first row and each source's captions of all rows. `samples`: one sample per
    row, as in open_clip."""
    raw: str = "caption"
    """Column of raw captions."""
    pseudo: dict[str, ColumnSource] = Field(default={})
    """Names and locations of pseudo-caption sources. A location is a column, several columns, either with a `split` for
    long texts, or files beside the table (`path`). A cell is one caption or a list of captions in the notation of
    Parquet, JSON or Python. `nan`, `None` and `null` are missing captions. A sample that lacks captions from a source
    is left out and counted."""

    @field_validator("pseudo")
    @classmethod
    def _sources(cls, value: dict[str, ColumnSource]) -> dict[str, ColumnSource]:
        return {_source_name(name): source for name, source in value.items()}

    def caption_sources(self) -> Mapping[str, int | None]:
        """The declared sources."""
        return dict.fromkeys(self.pseudo)

    @property
    def location(self) -> str:
        """The table."""
        return self.path


def _source_name(name: str) -> str:
    if name == "raw" or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f'{name!r} is not a valid name of a source; use letters, digits, "_" and "-", and not "raw"')
    return name


def _place(source: PlaceSource) -> PlaceSource:
    if isinstance(source, str) and not re.fullmatch(PLACE, source):
        raise ValueError(f'{source!r} is not a valid location; write "json:KEY" or the extension of a text member')
    return source


FileData = WebdatasetData | TableData
"""Your own data, read from files."""


class MixtureSource(Spec):
    """One source of a mixture."""

    data: Annotated[FileData, Field(discriminator="kind")]
    """Its samples: shards or a table, as in `[data]`."""
    weight: float | None = Field(None, gt=0)
    """Its share of the images that are trained on, relative to the other weights. Without any weight, every source has
    the share that its samples have."""


class MixtureData(DataSpec):
    """Several sources of your own data, trained on together, such as Open30M: CC3M, CC12M and YFCC15M.

    Without weights an epoch has every sample once. With weights it is as long as it can be with no source visited more
    than once over; each source is visited in passes of its own, which continue over epochs.
    """

    kind: Literal["mixture"] = "mixture"
    evaluation_sets: ClassVar[tuple[str, ...]] = ()
    is_mixture: ClassVar[bool] = True
    sources: dict[str, MixtureSource] = Field(min_length=2)
    """The sources by name. Their order has no effect."""

    @field_validator("sources")
    @classmethod
    def _named_and_weighted(cls, value: dict[str, MixtureSource]) -> dict[str, MixtureSource]:
        for name in value:
            _source_name(name)
        unweighted = [name for name, one in value.items() if one.weight is None]
        if 0 < len(unweighted) < len(value):
            raise ValueError(f"{unweighted[0]} has no weight, and others have: give all of them a weight, or none")
        return dict(sorted(value.items()))

    def caption_sources(self) -> Mapping[str, int | None]:
        """The sources of captions that every part declares."""
        declared = [set(one.data.pseudo) for one in self.sources.values()]
        return dict.fromkeys(sorted(set.intersection(*declared)))


Data = Annotated[
    ShapesData | DigitsData | OpenclipartData | WebdatasetData | TableData | MixtureData, Field(discriminator="kind")
]


def unknown_data(data: Never) -> SpecError:
    """The error of data that is neither generated nor read from files."""
    what = f"no code reads data.kind = {data.kind!r}: it is neither an EmbeddedWorld nor a FileSpec"
    return SpecError(what, where="data", fix="derive its spec from one of these (CONTRIBUTING.md)")
