"""Matplotlib figures as inline SVG: text stays text, and colours follow the page's dark mode."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
SERIES = 8
"""Colours for arms; the page defines --series-0 to --series-7 for light and dark."""
INK, MUTED, RULE, BASELINE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", BASELINE: "--baseline"} | {
    f"#0505{place:02x}": f"--series-{place}" for place in range(SERIES)
}
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCE = re.compile(r"#(?=[A-Za-z_])")
RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.labelsize": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
}
"""Settings of every figure: placeholder colours, and no mathtext in untrusted labels."""


def series_colour(place: int) -> str:
    """The placeholder of the arm colour number `place`."""
    return f"#0505{place % SERIES:02x}"


def to_svg(figure: Figure, key: str, title: str, description: str) -> str:
    """`figure` as an `<svg>` element for an HTML page.

    Args:
        figure: drawn with the placeholder colours of this module.
        key: unique on the page; every id within begins with it.
        title: name of the figure for those who do not see it.
        description: what it shows, for the same.
    """
    out = StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(out.getvalue())
    for element in root.iter():
        _adapt(element, key)
    for child in list(root):
        if child.tag.endswith("}metadata"):
            root.remove(child)
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        node = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{key}-{tag}"})
        node.text = text
        root.insert(place, node)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: ElementTree.Element, key: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{key}-{element.attrib['id']}")
    if XLINK in element.attrib:
        element.set("href", element.attrib.pop(XLINK).replace("#", f"#{key}-"))
    if "clip-path" in element.attrib:
        element.set("clip-path", _REFERENCE.sub(f"#{key}-", element.attrib["clip-path"]))
    if "style" in element.attrib:
        style = _FONT.sub("", element.attrib["style"])
        element.set("style", _COLOUR.sub(lambda found: _variable(found[0]), style))
    for child in list(element):
        if child.tag == f"{{{SVG}}}style":
            element.remove(child)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour
