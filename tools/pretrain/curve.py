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
    """Draw the loss above and, where it was probed, AUPRO@0.05 below, over the number of crops or steps.

    Parameters
    ----------
    curves : sequence of Path
        ``curve.jsonl`` of `pretrain.loop.run`; a curve is named after its folder.
    target : Path
        Image file to write.
    """
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(6.4, 5.6), sharex=True, layout="constrained")
    for path in curves:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps, label = [line["step"] for line in lines], path.parent.name
        upper.plot(steps, [line["loss"] for line in lines], marker=".", label=label)
        for name in (key for key in lines[-1] if key.endswith("_aupro")):
            kept = [line for line in lines if name in line]
            lower.plot([k["step"] for k in kept], [k[name] for k in kept], marker=".", label=f"{label}: {name[:-6]}")
    upper.set_ylabel("loss")
    lower.set(xlabel="step", ylabel="AUPRO@0.05 of a Gaussian")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    pyplot.close(figure)
