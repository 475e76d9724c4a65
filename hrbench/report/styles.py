"""How a configuration looks in every figure and on the page: hue by method, dash by view, shade and marker by the rest.

The hues are readable on white and on the page's dark background (contrast of 3 at least), lie 12 apart by CIEDE2000
even between the shades of two of them, and 9 apart for readers without red or green cones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

__all__ = ["HUES", "MARKERS", "PLAIN", "Look", "look_number", "looks"]

HUES = (
    ("#4286fa", "#1863c6", "#1e76ea"),
    ("#ac5e09", "#dd7a0f", "#bd670b"),
    ("#0f7564", "#1aa58f", "#148d7a"),
    ("#fb4881", "#c6135c", "#e7216d"),
    ("#a49511", "#726708", "#877b0c"),
    ("#804fcd", "#ae78fb", "#9562e2"),
    ("#138d41", "#1aa950", "#0f7536"),
    ("#127193", "#1e9ece", "#1887b0"),
)
"""A row of shades for each hue."""

MARKERS = {
    "o": "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z",
    "s": "M-.9-.9H.9V.9H-.9Z",
    "^": "M0-1L1 .9H-1Z",
    "D": "M0-1.15L1.15 0L0 1.15L-1.15 0Z",
    "v": "M0 1L1-.9H-1Z",
    "P": "M-.4-1H.4V-.4H1V.4H.4V1H-.4V.4H-1V-.4H-.4Z",
    "X": "M-1-.45L-.45-1L0-.55L.45-1L1-.45L.55 0L1 .45L.45 1L0 .55L-.45 1L-1 .45L-.55 0Z",
    "p": "M0-1L.95-.31L.59 .81H-.59L-.95-.31Z",
}
"""Markers by matplotlib's names, with their outline in SVG between -1 and 1."""

_DASHES: tuple[tuple[float, ...], ...] = (
    (), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (3, 1.2), (8, 1.5, 1.2, 1.5, 1.2, 1.5),
)  # fmt: skip

T = TypeVar("T", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour, marker and line of a configuration.

    Attributes
    ----------
    colour : str
        As ``#rrggbb``.
    marker : str
        One of :data:`MARKERS`.
    dash : tuple of float
        Lengths of strokes and gaps in widths of the line; empty for a solid line.
    """

    colour: str = HUES[0][0]
    marker: str = "o"
    dash: tuple[float, ...] = ()

    @property
    def line(self) -> str | tuple[float, tuple[float, ...]]:
        """The line style as matplotlib takes it."""
        return (0, self.dash) if self.dash else "-"

    @property
    def outline(self) -> str:
        """The marker as an SVG path between -1 and 1."""
        return MARKERS[self.marker]

    def dasharray(self, width: float = 1.6) -> str:
        """Return the dashes as SVG takes them for a line of some width; "" for a solid one."""
        return " ".join(f"{width * part:g}" for part in self.dash)


PLAIN = Look()


def look_number(index: int) -> Look:
    """Return a look for something that is no configuration: each has its own hue, marker and dash."""
    return _look(index, 0, 0, index)


def looks(of: Sequence[tuple[T, T, T]]) -> list[Look]:
    """Return a look for each (method, view, variant), no two alike up to 24 of a method.

    Parameters
    ----------
    of : sequence of tuple
        The variant is what tells runs of a method apart beside the view: preset, weights, options. The most frequent
        view gets the solid line, the first variant of a method the full shade.

    Returns
    -------
    list of Look
    """
    methods = _numbered(method for method, _, _ in of)
    frequent = Counter(view for _, view, _ in of)
    views = _numbered(sorted(frequent, key=lambda view: -frequent[view]))
    variants = {method: _numbered(variant for other, _, variant in of if other == method) for method in methods}
    members = {
        method: _numbered(sorted((variants[m][v], views[w]) for m, w, v in of if m == method)) for method in methods
    }
    return [
        _look(methods[m], variants[m][v], members[m][variants[m][v], views[w]], views[w]) for m, w, v in of
    ]  # fmt: skip


def _numbered(names: Iterable[T]) -> dict[T, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _look(method: int, variant: int, member: int, view: int) -> Look:
    """Return the look of a member of a method. A ninth method has the first one's hue, in another shade and marker."""
    shades, again = HUES[method % len(HUES)], method // len(HUES)
    marker = (method + again + member) % len(MARKERS)
    return Look(shades[(variant + again) % len(shades)], list(MARKERS)[marker], _DASHES[view % len(_DASHES)])
