"""Looks: every two hues told apart, on light and dark pages; the same for a configuration wherever it is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from hrbench.protocol import Protocol
from hrbench.report import plots
from hrbench.report.styles import HUES, MARKERS, look_number, looks
from hrbench.runs.store import Run

from .conftest import CONFIGS, board_of

_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def xyz(colour: str) -> np.ndarray:
    c = np.array(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.asarray(_XYZ @ linear)


def lab(colour: str) -> tuple[float, float, float]:
    t = xyz(colour) / _XYZ.sum(axis=1)
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def ciede2000(one: tuple[float, float, float], two: tuple[float, float, float]) -> float:
    """Return the colour difference, as Sharma, Wu and Dalal write it (Color Research and Application 30, 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    seventh = ((math.hypot(a1, b1) + math.hypot(a2, b2)) / 2) ** 7
    g = 0.5 * (1 - math.sqrt(seventh / (seventh + 25**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)
    h1, h2 = math.degrees(math.atan2(b1, a1)) % 360, math.degrees(math.atan2(b2, a2)) % 360
    turn = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0.0
    hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2))
    light, chroma, middle = (l1 + l2) / 2, (c1 + c2) / 2, (h1 + turn / 2) % 360
    t = sum(
        weight * math.cos(math.radians(times * middle + shift))
        for weight, times, shift in ((1, 0, 0), (-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    )
    sl = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotate = -2 * math.sqrt(chroma**7 / (chroma**7 + 25**7)) * math.sin(
        math.radians(60 * math.exp(-(((middle - 275) / 25) ** 2)))
    )  # fmt: skip
    parts = (l2 - l1) / sl, (c2 - c1) / sc, hue / sh
    return math.sqrt(sum(part**2 for part in parts) + rotate * parts[1] * parts[2])


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [  # lines 1, 7, 17, 25 and 33 of their table
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
        ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ],
)
def test_the_colour_difference_is_the_published_one(one: tuple, two: tuple, expected: float) -> None:
    assert ciede2000(one, two) == pytest.approx(expected, abs=1e-4)


def test_hues_are_told_apart() -> None:
    assert len(HUES) == 8
    for one, two in itertools.combinations(HUES, 2):
        assert min(ciede2000(lab(a), lab(b)) for a in one for b in two) >= 12
    for shades in HUES:
        assert min(ciede2000(lab(a), lab(b)) for a, b in itertools.combinations(shades, 2)) >= 4


def test_hues_are_read_on_both_backgrounds_of_the_page() -> None:
    css = (Path(plots.__file__).parent / "page.css").read_text(encoding="utf-8")
    for paper in ("#ffffff", "#15171a"):
        assert f"--paper: {paper};" in css
        for colour in itertools.chain(*HUES):
            dark, light = sorted(float(xyz(c)[1]) for c in (colour, paper))
            assert (light + 0.05) / (dark + 0.05) >= 3


def test_a_hue_per_method_a_dash_per_view() -> None:
    of = [(m, v, w) for m in ("a", "b", "c") for v in ("whole", "tiled") for w in ("big", "small")] + [
        ("d", "tiled", "")
    ]
    found = dict(zip(of, looks(of), strict=True))
    assert len(set(found.values())) == len(of)
    for one, two in itertools.combinations(of, 2):
        a, b = found[one], found[two]
        hues = [next(row for row in HUES if look.colour in row) for look in (a, b)]
        assert (hues[0] == hues[1]) == (one[0] == two[0])
        assert (a.dash == b.dash) == (one[1] == two[1])
        if one[0] == two[0]:  # where no lines are drawn
            assert a.marker != b.marker
            assert (a.colour == b.colour) == (one[2] == two[2])
    assert found["d", "tiled", ""].line == "-"  # the most frequent view


def test_looks_of_many_methods_differ() -> None:
    names = [str(number) for number in range(24)]
    drawn = looks([(name, "whole", "") for name in names])
    assert len({look.colour for look in drawn}) == 24  # where neither markers nor dashes tell
    assert all(a.marker != b.marker for a, b in zip(drawn, drawn[8:], strict=False))
    assert [look.colour for look in drawn[:8]] == [row[0] for row in HUES]
    many = [look_number(index) for index in range(12)]
    assert all(a.marker != b.marker and a.dash != b.dash for a, b in itertools.pairwise(many))
    assert {look.marker for look in many} == set(MARKERS)


def test_a_configuration_looks_the_same_in_every_figure(make_run: Callable[..., Run], protocol: Protocol) -> None:
    board = board_of([make_run(config) for config in CONFIGS], protocol)
    expected = {" " + row.configuration.short: row.configuration.look.colour for row in board.rows}
    drawn = plots.figures(board, plots.gather(board), kinds=("sizes", "diameters", "curves", "cost"))
    assert len(drawn) == 4
    for figure in drawn.values():
        legend = figure.legends[0]
        pairs = zip(legend.get_texts(), legend.legend_handles, strict=True)
        found = {text.get_text(): handle.get_color() for text, handle in pairs}  # type: ignore[union-attr]
        assert expected.items() <= found.items()
