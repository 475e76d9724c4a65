"""Figures as files, and as parts of a page that loads nothing."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from hrbench._util.files import atomic
from hrbench.report.drawing import GRID, INK, MUTED, PAPER
from hrbench.report.marks import WHISKER
from hrbench.report.plot_marks import tell, write_ids

__all__ = ["FORMATS", "inline_svg", "save"]

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

FORMATS = tuple(_UNDATED)
_DPI = 200

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def save(figure: Figure, stem: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """Write ``stem.png``, ``.svg`` and ``.pdf``, and return their paths; the same figure gives the same bytes."""
    _lay_out(figure)
    paths = []
    for suffix in formats:
        path = stem.with_name(f"{stem.name}.{suffix}")
        buffer = io.BytesIO()
        _write(figure, buffer, suffix, text_as="path")
        with atomic(path) as temporary:
            # Marks of a kind share their gid, and no two elements of a file may share an id.
            temporary.write_bytes(buffer.getvalue().replace(f' id="{WHISKER}"'.encode(), b""))
        paths.append(path)
    return paths


def _lay_out(figure: Figure) -> None:
    """Place all axes for good: else each format would begin with that, and with drawing everything for nothing."""
    if (engine := figure.get_layout_engine()) is not None:
        figure.set_dpi(_DPI)  # letters are of other widths at another
        engine.execute(figure)
        figure.set_layout_engine(None)


def _write(figure: Figure, target: io.BytesIO, suffix: str, text_as: str, clear: bool = False) -> None:
    settings: dict[Any, Any] = {"svg.hashsalt": "hrbench", "svg.fonttype": text_as, "text.parse_math": False}
    settings["pdf.fonttype"] = 42  # TrueType: journals refuse type 3
    fonts = logging.getLogger("fontTools")
    before = fonts.level
    fonts.setLevel(logging.WARNING)  # it tells each table of a font that it subsets
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Files show boxes for letters that the font lacks; on the page the reader's browser has them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        try:
            figure.savefig(target, format=suffix, dpi=_DPI, metadata=_UNDATED[suffix], transparent=clear)
        finally:
            fonts.setLevel(before)


def inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """Return `figure` as an ``<svg>`` element that takes its colours from the page.

    Parameters
    ----------
    figure : Figure
    prefix : str
        Starts every id, so that several figures can stand in one page.
    description : str
        What the figure shows, for those who cannot see it.
    """
    buffer = io.BytesIO()
    tell(figure)
    _lay_out(figure)
    _write(figure, buffer, "svg", text_as="none", clear=True)
    root = ElementTree.fromstring(buffer.getvalue())
    write_ids(root, figure)
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith("}metadata") or not isinstance(c.tag, str)]:
            parent.remove(child)
    used = set(re.findall(rb"#([\w-]+)", buffer.getvalue()))
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id" and value.encode() not in used:
                del element.attrib[name]
            elif name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name in ("d", "x", "y", "points"):  # hundredths of a point are enough
                element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", value))
            elif name == f"{{{_XLINK}}}href":
                element.set(name, value.replace("#", f"#{prefix}-"))
            else:
                element.set(name, _themed(value.replace("url(#", f"url(#{prefix}-")))
    for style in root.iter(f"{{{_SVG}}}style"):
        style.text = ""  # `*{...}` would reach the whole page
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": description, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _themed(value: str) -> str:
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (GRID, "line"), (PAPER, "paper")):
        value = value.replace(colour, f"var(--{name})")
    return value
