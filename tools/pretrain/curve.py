"""Plot what a training wrote down about itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

__all__ = ["plot"]


def plot(curves: Sequence[Path], target: Path) -> None:
    """Draw the loss and, where it was probed, AUPRO@0.05 below, over the steps.

    Parameters
    ----------
    curves : sequence of Path
        ``curve.jsonl`` of `pretrain.loop.run`; a curve is named after its folder.
    target : Path
        Image file to write.
    """
    read = [[json.loads(line) for line in path.read_text().splitlines()] for path in curves]
    probed = any(key.endswith("_aupro") for lines in read for key in lines[-1])
    rows = 1 + probed
    figure, panels = pyplot.subplots(
        rows, 1, figsize=(6.4, 2.8 * rows), sharex=True, squeeze=False, layout="constrained"
    )
    for path, lines in zip(curves, read, strict=True):
        label = path.parent.name
        panels[0, 0].plot([line["step"] for line in lines], [line["loss"] for line in lines], marker=".", label=label)
        for name in (key for key in lines[-1] if key.endswith("_aupro")):
            kept = [line for line in lines if name in line]
            panels[1, 0].plot(
                [k["step"] for k in kept], [k[name] for k in kept], marker=".", label=f"{label}: {name[:-6]}"
            )
    for axes, words in zip(panels[:, 0], ("loss", "AUPRO@0.05 of a Gaussian"), strict=False):
        axes.set_ylabel(words)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    panels[-1, 0].set_xlabel("step")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    pyplot.close(figure)
