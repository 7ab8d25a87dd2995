"""SVG drawings as the package openclipart-svg has them, made by the tests: no file of the package is needed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.config.data import OpenclipartData
from harness.data.openclipart import package

SMALL = OpenclipartData(train_samples=24, test_per_class=3, retrieval_samples=6)

_SVG = """<?xml version="1.0" encoding="{encoding}"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">
  <metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
    <dc:title>{title}</dc:title><dc:description>{description}</dc:description>
    <dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
    <dc:creator><cc:Agent><dc:title>somebody</dc:title></cc:Agent></dc:creator>
  </cc:Work></rdf:RDF></metadata>
  {body}
</svg>
"""


def svg(
    body: str,
    title: str = "",
    keywords: Sequence[str] = (),
    description: str = "",
    size: tuple[str, str] = ("100", "100"),
    encoding: str = "utf-8",
) -> bytes:
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    text = _SVG.format(
        encoding=encoding,
        width=size[0],
        height=size[1],
        title=title,
        description=description,
        keywords=items,
        body=body,
    )
    return text.encode(encoding)


def blobs(seed: int, colour: str = "black") -> str:
    """Rectangles at places of their own for each seed."""
    rng = np.random.default_rng(seed)
    return "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{colour}"/>'
        for x, y, w, h in rng.integers((0, 0, 8, 8), (70, 70, 40, 40), (7, 4)).tolist()
    )


def write_package(folder: Path) -> Path:
    """Sixty drawings: fish, birds and things of no class; ten of them again in another colour, and a link."""
    folder.mkdir(parents=True)
    for seed in range(60):
        kind = ("fish", "bird", "thing")[seed % 3]
        keywords = (kind, f"group{'abcd'[seed % 4]}", "hash", "")
        drawing = svg(blobs(seed), f"Drawing {seed}", keywords, "Made by hand" if seed % 5 == 0 else "")
        (folder / f"{kind}_{seed}.svg").write_bytes(drawing)
        if seed % 6 == 0:
            (folder / f"{kind}_{seed}_again.svg").write_bytes(svg(blobs(seed, "#803000"), "Again", keywords))
    (folder / "link.svg").symlink_to("fish_0.svg")
    (folder / "text_only.svg").write_bytes(svg("<text x='5' y='50'>words</text>", "Words", ("thing",)))
    return folder


def known(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the harness know the drawings in `folder` as those of the package."""
    files = sorted(file for file in folder.rglob("*.svg") if not file.is_symlink())
    named = sorted((file.relative_to(folder).as_posix(), file.read_bytes()) for file in files)
    monkeypatch.setitem(package.DIGESTS, "0.18", package.digest_of(named))


def write_deb(file: Path, folder: Path) -> Path:
    """`folder` as a Debian package, by deb(5) and ar(5)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        tar.add(folder, "./usr/share/openclipart/svg")
    archive = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data.getvalue())):
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    file.write_bytes(archive)
    return file
