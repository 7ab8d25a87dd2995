"""What is trained on: the embedded worlds, one's own webdataset shards, or a table of image paths."""

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
"""Fields that hold a path; where data lies is no part of a run's identity, its content is."""
READING_FIELDS = ("split", "separator", "quoting", "repeats")
"""Fields that decide which samples are read, and so the content, which identifies the data."""
LATER_FIELDS = frozenset((*READING_FIELDS, "least_share", "pictures"))
"""Fields that provisional ids leave out unless they are stated, because older ids had none."""


class RawCaptions(Spec):
    """How bad the captions that come with the pictures are, as alt-texts of the web are."""

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
    """A simulated captioner: it looks at the true attributes, leaves some out and gets some wrong."""

    captions: int = Field(5, ge=1, le=20)
    """Pseudo-captions for each picture."""
    attribute_probability: Share = 0.6
    """Probability that an attribute other than the main one is told; the main one always is."""
    error_rate: Share = 0.08
    """Probability, for each attribute told, that it is wrong."""


class VerboseCaptioner(Captioner):
    """A simulated captioner that tells more and errs more."""

    attribute_probability: Share = 0.8
    """Probability that an attribute other than the main one is told; the main one always is."""
    error_rate: Share = 0.16
    """Probability, for each attribute told, that it is wrong."""


class DataSpec(Spec):
    """What every kind of data states. It is an `EmbeddedWorld` or a `FileSpec`."""

    evaluation_sets: ClassVar[tuple[str, ...]]
    """Names of the evaluation sets that come with it."""

    @abstractmethod
    def caption_sources(self) -> Mapping[str, int | None]:
        """Names of its pseudo-caption sources, with the captions of each image where the spec determines them."""


class EmbeddedWorld(DataSpec):
    """Data that is generated. Its code is registered in `harness.data.synthetic.generate.generators`."""

    @abstractmethod
    def size(self) -> int:
        """Pictures to train on."""


class ShapesData(EmbeddedWorld):
    """The embedded world: one object a picture, whose shape, colour, background and size are known."""

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
    """How many shapes there are: circle, square, triangle, star, cross, ring, diamond, moon."""
    colours: int = Field(6, ge=2, le=8)
    """How many colours there are: red, green, blue, yellow, purple, orange, pink, brown."""
    backgrounds: int = Field(4, ge=1, le=6)
    """How many backgrounds there are: white, black, striped, grey, checkered, dotted."""
    sizes: int = Field(2, ge=1, le=3)
    """How many sizes there are: large, small, tiny."""
    skew: float = Field(0.8, ge=0, le=4)
    """Shapes and colours are drawn with weight 1 / (rank + 2)^skew, so that every batch has near-duplicates;
    0 draws them evenly."""
    pixel_noise: float = Field(12.0, ge=0, le=100)
    """Standard deviation of the noise on each pixel, in grey levels of 255."""
    synonyms: Share = 0.15
    """Probability that a word of a caption is replaced by a synonym ("large" by "big")."""
    raw: RawCaptions = RawCaptions()
    """Faults of the raw captions; the full ones name shape and colour."""
    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`; it always tells the shape."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`: tells more and errs more."""

    def caption_sources(self) -> Mapping[str, int | None]:
        """Both simulated captioners, with their captions per picture."""
        return {"captioner": self.captioner.captions, "captioner_b": self.captioner_b.captions}

    def size(self) -> int:
        """As its field says."""
        return self.train_samples


class DigitsData(EmbeddedWorld):
    """scikit-learn's 1,797 handwritten digits with declared noisy captions: most of a batch are false negatives."""

    kind: Literal["digits"] = "digits"
    evaluation_sets: ClassVar[tuple[str, ...]] = ("digits",)
    test_samples: int = Field(500, ge=10, le=1000)
    """Pictures kept for the evaluation set `digits`, evenly over the ten classes; the others are trained on."""
    image_size: int = Field(32, ge=8, le=512)
    """Side in pixels that the 8 x 8 originals are enlarged to."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the split and the captions. It is part of the data, unlike the seed of a run."""
    synonyms: Share = 0.15
    """Probability that a word of a caption is replaced by a synonym ("seven" by "7")."""
    raw: RawCaptions = RawCaptions()
    """Faults of the raw captions; the full ones name digit and parity."""
    captioner: Captioner = Captioner()
    """The pseudo-caption source `captioner`; it always tells the digit, and at times whether it is odd or even."""
    captioner_b: VerboseCaptioner = VerboseCaptioner()
    """The pseudo-caption source `captioner_b`: tells more and errs more."""

    def caption_sources(self) -> Mapping[str, int | None]:
        """Both simulated captioners, with their captions per picture."""
        return {"captioner": self.captioner.captions, "captioner_b": self.captioner_b.captions}

    def size(self) -> int:
        """All that are not tested on."""
        return 1797 - self.test_samples


Verify = Literal["header", "decode"]
_VERIFY_DOC = """How images are checked once, before the first run. `header` reads each header and end (about 0.1 ms an
image) and decodes only suspicious ones; `decode` decodes every image (about 2 ms at 256 px). Samples that fail are left
out, counted and reported."""


class Pictures(Spec):
    """How image files become RGB. The defaults are open_clip's (Pillow's `convert("RGB")`), except that pictures of 16
    bits are scaled, where Pillow clips nearly every pixel to white."""

    exif: Literal["ignore", "apply"] = "ignore"
    """Whether a picture is turned as its EXIF orientation says."""
    alpha: Literal["drop", "white", "black"] = "drop"
    """What is done with transparency: dropped, or the picture is laid over white or black."""
    cmyk: Literal["convert", "reject"] = "convert"
    """Whether CMYK pictures are converted without their colour profile, or left out and counted."""


class FileSpec(DataSpec):
    """Data that is read from files. Its code is registered in `harness.data.sources.formats.file_formats`."""

    evaluation_sets: ClassVar[tuple[str, ...]] = ()

    verify: Verify = Field("header", description=" ".join(_VERIFY_DOC.split()))
    quarantine: str | None = None
    """A quarantine list as `harness data check` writes it: its samples are left out and counted, and a shard that it
    names is read up to its damage instead of being refused. Relative to the spec file."""
    least_share: Share = 0.95
    """Least share of the samples that must be usable; fewer is an error that gives the reasons. Samples on the
    quarantine list do not count."""
    split: str | None = None
    """Which split is read of a folder or glob whose file names tell several apart (`train`, `validation`, `test`)."""
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
    """Where the raw caption is: the extension of a text member (`txt`) or a key of a json member (`json:caption`)."""
    pseudo: dict[str, PlaceSource] = Field(default={"captions": "json:captions"})
    """Pseudo-caption sources: a name for each, and where it is: `json:KEY` (a text or a list of texts), the extension
    of a text member with one caption a line, either with a `split`, or files beside the shards (`path`). A sample
    without a caption from one of them is left out and counted; a source that no sample has is ignored until an
    experiment asks for it."""

    @field_validator("pseudo")
    @classmethod
    def _sources(cls, value: dict[str, PlaceSource]) -> dict[str, PlaceSource]:
        return {_source_name(name): _place(source) for name, source in value.items()}

    def caption_sources(self) -> Mapping[str, int | None]:
        """Those that are declared."""
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
    """Column of the samples' keys. Default: the image path, so that each image stands in one row; for embedded images
    the table's name and row."""
    separator: str | None = Field(None, min_length=1, max_length=1)
    """Between the cells of a text table. Default: as the file name says (`.csv`, `.tsv`), unless the header has the
    columns only with a tab, comma, semicolon or bar between them, which is said."""
    quoting: bool | None = None
    """Whether cells of a text table may stand in double quotes. Default: in `.csv` they may; in `.tsv` if every cell
    that begins with a quote is closed by one."""
    repeats: Literal["first", "captions", "samples"] = "first"
    """What rows of one image (or key) are: all but the `first` are left out and counted; or one sample, with the raw
    caption of the first row and in each source the `captions` of all; or `samples` of their own, as in open_clip."""
    raw: str = "caption"
    """Column of raw captions."""
    pseudo: dict[str, ColumnSource] = Field(default={})
    """Pseudo-caption sources: a name for each, and its column or columns, with a `split` if they are long texts, or
    files beside the table (`path`). A cell is one caption or a list of them, as Parquet, JSON or Python write lists.
    `nan`, `None` and `null` are missing captions. A sample without a caption from one of them is left out and
    counted."""

    @field_validator("pseudo")
    @classmethod
    def _sources(cls, value: dict[str, ColumnSource]) -> dict[str, ColumnSource]:
        return {_source_name(name): source for name, source in value.items()}

    def caption_sources(self) -> Mapping[str, int | None]:
        """Those that are declared."""
        return dict.fromkeys(self.pseudo)

    @property
    def location(self) -> str:
        """The table."""
        return self.path


def _source_name(name: str) -> str:
    if name == "raw" or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f'{name!r} is no name for a source; use letters, digits, "_" and "-", and not "raw"')
    return name


def _place(source: PlaceSource) -> PlaceSource:
    if isinstance(source, str) and not re.fullmatch(PLACE, source):
        raise ValueError(f'{source!r} names no place; write "json:KEY" or the extension of a text member')
    return source


FileData = WebdatasetData | TableData
"""One's own data: what is read from files."""

Data = Annotated[ShapesData | DigitsData | WebdatasetData | TableData, Field(discriminator="kind")]


def unknown_data(data: Never) -> SpecError:
    """The error of data that is neither generated nor read from files."""
    what = f"no code reads data.kind = {data.kind!r}: it is neither an EmbeddedWorld nor a FileSpec"
    return SpecError(what, where="data", fix="derive its spec from one of these (CONTRIBUTING.md)")
