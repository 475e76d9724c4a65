"""The page's pictures: drawn by the browser from photographs, grey maps and outlines; no script is needed.

A photograph stands in the page once. A map is a small grey picture that a filter colours; outlines are paths. Pictures
are decoded and written anew: nothing else that a file may hold gets into the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from hrbench._util.files import atomic
from hrbench.errors import HrbenchError
from hrbench.metrics.words import counted
from hrbench.report.configurations import printable
from hrbench.report.picture_grid import OPACITY, GridLine, PictureGrid, close_up, edges, panel_words, subject
from hrbench.runs.picture_files import UNIT, Box, Picture

__all__ = ["FOLDER", "LARGEST_PAGE", "heat", "place_pictures"]

log = logging.getLogger("hrbench")

FOLDER = "leaderboard-pictures"
"""Beside the page, where pictures do not stand in it."""
LARGEST_PAGE = 25_000_000
"""Bytes of a page with its pictures: as much as most mail takes."""
_MARKUP = 1000  # bytes around the texts of a panel or a line, at most


@dataclass
class Album:
    """Where the pictures of a page lie.

    Attributes
    ----------
    folder : Path or None
        Written to; with None they stand in the page.
    """

    folder: Path | None = None
    photos: dict[tuple[str, Box, bytes], dict[str, Any]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    def address(self, pixels: npt.NDArray[np.uint8], kind: Literal["jpeg", "png"]) -> str:
        """Keep a picture; return what the page calls it."""
        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": 86} if kind == "jpeg" else {"optimize": True}
        Image.fromarray(pixels).save(buffer, kind, **options)  # without comments and profiles
        content = buffer.getvalue()
        if self.folder is None:
            return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        name = f"{hashlib.sha256(content).hexdigest()[:20]}.{'jpg' if kind == 'jpeg' else 'png'}"
        if name not in self.written:
            self.written.add(name)
            with atomic(self.folder / name) as path:
                path.write_bytes(content)
        return f"{self.folder.name}/{name}"

    def tidy(self) -> None:
        """Remove the pictures of an earlier page."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.iterdir():
                if re.fullmatch(r"[0-9a-f]{20}\.(jpg|png)", path.name) and path.name not in self.written:
                    path.unlink()

    def line(self, grid: PictureGrid, line: GridLine, category: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return what the page needs of a line, and the photographs that it does not have yet."""
        first = line.first
        photo = first.read_photo()
        key = first.image, first.window, category.encode() + hashlib.sha256(photo.tobytes()).digest()
        new = []
        if key not in self.photos:
            mask = first.read_mask()
            self.photos[key] = {
                "id": f"_photo{len(self.photos)}",
                "source": self.address(photo, "jpeg"),
                "place": _place(first.window),
                "outline": "" if mask is None else _path(mask, first),
            }
            new.append(self.photos[key])
        panels = [
            None if picture is None else self._panel(picture) | _words(grid, number, picture)
            for number, picture in enumerate(line.panels)
        ]
        text = {
            "heading": printable(line.heading),
            "subject": subject(first),
            "photo": self.photos[key]["id"],
            "outlined": bool(self.photos[key]["outline"]),
            "view": _view(close_up(first)),
            "window": _view(first.window),
            "panels": panels,
        }
        return text, new

    def _panel(self, picture: Picture) -> dict[str, Any]:
        grey = picture.read_map()
        return {
            "source": self.address(grey, "png"),
            "place": _place(picture.window),
            "contour": _path(grey >= UNIT, picture),
        }


def place_pictures(grids: Sequence[tuple[dict[str, Any], PictureGrid]], room: int, folder: Path | None) -> None:
    """Put the pictures of all categories into what the page shows of them.

    Parameters
    ----------
    grids : sequence of (dict, PictureGrid)
        Of each category what the page's template takes, whose entry ``pictures`` is set.
    room : int
        Bytes that they may take in the page; each category has an equal share, and what others leave.
    folder : Path or None
        Where they are written instead.
    """
    album = Album(folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for number, (category, grid) in enumerate(grids):
        share = room // (len(grids) - number)
        lines: list[dict[str, Any]] = []
        photos: list[dict[str, Any]] = []
        left, damaged, taken = 0, 0, 2 * _MARKUP
        for line in grid.lines:
            known = dict(album.photos)
            try:
                text, new = album.line(grid, line, category["anchor"])
            except HrbenchError as error:
                log.warning("%s; this picture is left out", error)
                album.photos = known
                damaged += 1
                continue
            size = _size(text) + _size(new)
            if folder is None and taken + size > share:
                album.photos = known
                left += 1
                continue
            taken += size
            lines.append(text)
            photos += new
        room -= taken
        notes = list(grid.notes)
        if left:
            notes.append(
                f"{counted(left, 'line')} of pictures left out, to keep this page below {LARGEST_PAGE // 10**6} MB: "
                "`hrbench leaderboard RUNS --assets` writes all of them into a folder beside the page."
            )
        if damaged:
            notes.append(f"{counted(damaged, 'line')} of pictures left out: files of the run are damaged.")
        category["pictures"] = (lines or notes) and {
            "columns": grid.columns,
            "lines": lines,
            "photos": photos,
            "notes": notes,
            "threshold": any(column.pictures.threshold is not None for column in grid.columns),
        }
    album.tidy()


def _size(value: Any) -> int:
    """Return the bytes of all texts in a value, with what the markup around them takes at most."""
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict):
        return _MARKUP + sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, Iterable) else 0


def heat() -> dict[str, Any]:
    """Return the tables of the filter that colours a grey map, and the stops of the colour bar."""
    colours = matplotlib.colormaps["inferno"](np.linspace(0, 1, 17))[:, :3]
    return {
        "channels": [(name, " ".join(f"{value:.3f}" for value in colours[:, n])) for n, name in enumerate("RGB")],
        "opacity": " ".join(f"{value:g}" for value in OPACITY),
        "stops": [matplotlib.colors.to_hex(colour) for colour in colours],
    }


def _words(grid: PictureGrid, number: int, picture: Picture) -> dict[str, Any]:
    verdict, score = panel_words(grid.columns[number], picture)
    name = grid.columns[number].row.configuration.short
    parts = (part for part in (verdict, score) if part)
    return {
        "verdict": verdict,
        "bad": verdict in ("missed", "false alarm", "not called"),
        "score": score,
        "label": f"{printable(name)}: {subject(picture)}, {', '.join(parts)}",
    }


def _place(window: Box) -> Markup:
    top, left, bottom, right = window
    return Markup(f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"')


def _view(box: Box) -> str:
    top, left, bottom, right = box
    return f"{left} {top} {right - left} {bottom - top}"


def _path(mask: npt.NDArray[np.bool_], picture: Picture) -> str:
    """Return the outline of a mask that fills the window, as an SVG path in native pixels."""
    top, left, bottom, right = picture.window
    down, across = (bottom - top) / mask.shape[0], (right - left) / mask.shape[1]
    return "".join(
        f"M{left + across * x:g} {top + down * y:g}" + (f"h{across * (u - x):g}" if y == v else f"v{down * (v - y):g}")
        for x, y, u, v in edges(mask)
    )
