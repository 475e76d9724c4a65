"""What a page's script needs to answer for a plot: whose each mark is, and how the axes count."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

__all__ = ["own_legend", "owned_by", "tell", "write_ids"]

_ROW, _KEY, _AXES, _READS = "row", "key", "axes", "-reads"
_CURVE = 1.5  # points: thinner lines are whiskers and verticals


def owned_by(axes: Axes, row: int, colour: str) -> None:
    """Say that what was drawn last in a colour belongs to a row of the leaderboard.

    Curves answer with their values, and where there are none single markers do. What only marks a place does not:
    thin lines, lines with butt ends, and what has a gid.

    Parameters
    ----------
    axes : Axes
    row : int
        Number of the configuration.
    colour : str
    """
    for artist in axes.get_children():
        if not str(artist.get_label()).startswith(f"_{_ROW}") and _has(artist, colour):
            artist.set_label(f"_{_ROW}{row}")


def own_legend(legend: Legend, rows: Sequence[int]) -> None:
    """Say which rows the first entries of a legend stand for."""
    for handle, text, row in zip(legend.legend_handles, legend.get_texts(), rows, strict=False):
        for artist in (handle, text):
            if artist is not None:
                artist.set_label(f"_{_KEY}{row}")


def _has(artist: Artist, colour: str) -> bool:
    colours: list[Any] = []
    if isinstance(artist, Line2D):
        colours = [artist.get_color(), artist.get_markeredgecolor(), artist.get_markerfacecolor()]
    elif isinstance(artist, Patch):
        colours = [artist.get_facecolor(), artist.get_edgecolor()]
    elif isinstance(artist, Collection):
        colours = list(artist.get_facecolor()) + list(artist.get_edgecolor())
    return mpl.colors.to_hex(colour) in {mpl.colors.to_hex(one) for one in colours if not _is_none(one)}


def _is_none(colour: object) -> bool:
    return isinstance(colour, str) and colour.lower() in ("none", "auto")


def _reads(artist: Artist) -> bool:
    if not isinstance(artist, Line2D) or artist.get_gid() is not None:
        return False
    if artist.get_linestyle() == "None":
        return artist.get_marker() not in (None, "None", "")
    return artist.get_linewidth() >= _CURVE and artist.get_solid_capstyle() != "butt"


def tell(figure: Figure) -> None:
    """Give the marks of a figure ids, which :func:`write_ids` reads in its SVG."""
    for number, axes in enumerate(figure.axes):
        axes.set_gid(f"{_AXES}{number}")
    for artist in _artists(figure):
        if (label := str(artist.get_label())).startswith((f"_{_ROW}", f"_{_KEY}")):
            artist.set_gid(label[1:] + _READS * (label.startswith(f"_{_ROW}") and _reads(artist)))


def _artists(artist: Artist) -> Iterator[Artist]:
    """Yield all artists in it but those of axes: to be asked for them makes hundreds of ticks that nobody draws."""
    yield artist
    for child in artist.get_children():
        if not isinstance(child, Axis):
            yield from _artists(child)


def write_ids(root: ElementTree.Element, figure: Figure) -> None:
    """Turn the ids into attributes of the page, which several elements may share, and tell how the axes count.

    ``data-row`` is a mark's row, with ``data-reads`` where it has values; ``data-key`` an entry of the legend;
    ``data-axes`` the number of the axes, at the root all of them as JSON. The figure was drawn before: its layout tells
    where the axes lie.
    """
    for element in root.iter():
        name, _, reads = element.get("id", "").partition("-")
        for kind in (_ROW, _KEY, _AXES):
            if name.startswith(kind) and name.removeprefix(kind).isdecimal():
                del element.attrib["id"]
                element.set(f"data-{kind}", name.removeprefix(kind))
                if reads:
                    element.set("data-reads", "")
    if root.find(".//*[@data-reads]") is not None:
        root.set("data-axes", json.dumps(_all_axes(figure), ensure_ascii=False, separators=(",", ":")))


def _all_axes(figure: Figure) -> list[dict[str, Any]]:
    width, height = 72 * figure.get_size_inches()
    found: list[dict[str, Any]] = []
    labels = ["", ""]
    for axes in figure.axes:
        box = axes.get_position()
        place = (box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height)
        labels = [mine or before for mine, before in zip((axes.get_xlabel(), axes.get_ylabel()), labels, strict=True)]
        title = axes.get_title(loc="left").partition("\n")[0]
        entry: dict[str, Any] = {"box": [round(float(end), 2) for end in place], "title": title}
        for name, axis, limits, label in zip(
            "xy", (axes.xaxis, axes.yaxis), (axes.get_xlim(), axes.get_ylim()), labels, strict=True
        ):
            ticks = [(float(at), text.get_text()) for at, text in zip(axis.get_majorticklocs(), axis.get_ticklabels())]  # noqa: B905
            entry[name] = _axis(axis.get_scale() == "log", limits, label.partition(";")[0], ticks)
        found.append(entry)
    return found


def _axis(log: bool, limits: Iterable[float], label: str, ticks: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Return scale, ends and label of an axis; its ticks where they are names, and where its zone of zero ends."""
    entry: dict[str, Any] = {"log": log, "ends": [float(f"{end:.6g}") for end in limits], "label": label}
    texts = [text for _, text in ticks if text]
    if not log and texts and not all(map(_is_number, texts)):
        entry["names"] = [[at, text.replace("\n", " · ")] for at, text in ticks if text]
    elif log and (zero := [at for at, text in ticks if text == "0"]):
        entry["zero"] = float(f"{1.4 * zero[0]:.6g}")
    elif texts and texts[0].endswith("%"):
        entry["percent"] = True
    return {name: value for name, value in entry.items() if value not in ("", False)}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace("−", "-").replace(",", "").removesuffix("%")))
    except ValueError:
        return False
