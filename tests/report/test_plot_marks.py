from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from hrbench.report.embedding import inline_svg
from hrbench.report.plot_marks import owned_by


def test_a_curve_can_be_read_back_from_its_path() -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(0.01, 10)
    axes.set_ylim(-1, 3)
    axes.set_xlabel("time; below it speed")
    axes.set_title("a panel\nmore", loc="left")
    x, y = np.geomspace(0.02, 5, 9), np.linspace(-0.5, 2.5, 9) ** 2 / 4
    axes.plot(x, y, color="#123456", lw=1.5)
    axes.plot([1, 1], [0, 2], color="#123456", lw=1)
    owned_by(axes, 3, "#123456")
    axes.plot(x, 0 * x, color="#654321", lw=1.5)
    owned_by(axes, 12, "#654321")
    axes.axhline(0, color="#777777", lw=2)
    root = ElementTree.fromstring(inline_svg(figure, "p", ""))
    rows = [(e.get("data-row"), e.get("data-reads")) for e in root.iter() if e.get("data-row")]
    assert rows == [("3", ""), ("3", None), ("12", "")]
    (panel,) = json.loads(root.attrib["data-axes"])
    assert panel["title"] == "a panel"
    assert panel["x"]["label"] == "time"
    path = next(e for e in root.iter() if e.get("data-reads") == "").find("{*}path")
    assert path is not None
    points = np.array([float(word) for word in path.attrib["d"].replace("M", "").replace("L", "").split()]).reshape(
        -1, 2
    )
    left, top, right, bottom = panel["box"]
    low, high = panel["x"]["ends"]
    across = low * (high / low) ** ((points[:, 0] - left) / (right - left))
    up = np.interp(-points[:, 1], [-bottom, -top], panel["y"]["ends"])
    np.testing.assert_allclose(across, x, rtol=1e-3)
    np.testing.assert_allclose(up, y, atol=2e-3)


@pytest.mark.parametrize(("labels", "expected"), [
    (["tiny\n1–2 px", "small"], {"names": [[0, "tiny · 1–2 px"], [1, "small"]]}),
    (["0.0", "−0.5"], {}),
    (["1 %", "2 %"], {"percent": True}),
])  # fmt: skip
def test_axes_say_how_they_count(labels: list[str], expected: dict[str, object]) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#123456", lw=1.5)
    owned_by(axes, 0, "#123456")
    axes.set_xticks([0, 1], labels)
    (panel,) = json.loads(ElementTree.fromstring(inline_svg(figure, "p", "")).attrib["data-axes"])
    ends = panel["x"].pop("ends")
    assert ends[0] < 0 < 1 < ends[1]
    assert panel["x"] == expected
