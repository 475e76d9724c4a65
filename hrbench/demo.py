"""``hrbench demo``: a small dataset and seven methods on it, in three minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import hrbench
from hrbench._util.progress import tracker
from hrbench.data import make_dataset
from hrbench.metrics.words import counted
from hrbench.protocol import load_protocol

if TYPE_CHECKING:  # brings torch along
    from hrbench.grid.study import Study

__all__ = ["CATEGORY", "METHODS", "demo"]

CATEGORY = "wood_grain"
METHODS: Mapping[str, Mapping[str, int]] = {
    "gaussian": {},
    "knn": {},
    "l2bt": {},
    "fastflow": {},
    "uflow": {},
    "rstpm": {"steps": 35, "discriminator_steps": 35},
    "isstad": {"steps": 160},
}
"""The fastest first: a number stands within half a minute. Of the slowest, options for even shorter fits."""

_TRAIN, _GOOD, _DEFECTIVE = 57, 40, 40
"""Images: a third of the first can be held out, enough to promise 5 false alarms per 100 good ones."""


def demo(output: Path, device: str = "auto", stop: Callable[[], bool] = lambda: False) -> Study:
    """Make data, run the methods in their demo preset, print the tables and write the page.

    Parameters
    ----------
    output : Path
        Folder; what is there already is not done again.
    device : str
    stop : callable
        Asked often: once it says True no stage is begun any more, and no page is written.
    """
    from hrbench.report import summarise, write_leaderboard
    from hrbench.report.terminal import Terminal, print_tables

    terminal = Terminal.here()
    opening = (
        f"Makes {_TRAIN + _GOOD + _DEFECTIVE} images of 256 x 256 px with known defects in {output}, and runs "
        f"{counted(len(METHODS), 'method')} on them in the smallest presets, the fastest first. "
        "Each says as it ends what it has found; then tables are printed and a page is written. That takes about 3 "
        "minutes on 2 cores; the same command goes on where it was stopped. The fits are too short to rank methods by."
    )
    print(terminal.wrap(opening), flush=True)
    root = make_dataset(
        output / "procedural",
        categories=[CATEGORY],
        size=(256, 256),  # one tile: many small images in the time of few large ones
        train=_TRAIN,
        test_good=_GOOD,
        test_defective=_DEFECTIVE,
        progress=tracker("making images"),
    )
    study = hrbench.run(
        "folder",
        list(METHODS),
        root=root,
        output=output,
        preset="demo",
        options=METHODS,
        device=device,
        rehearse=False,
        stop=stop,
    )
    if study.runs and not (study.halted or stop()):
        protocol = load_protocol("native")
        summary = summarise(study.runs, protocol)
        written = write_leaderboard(study.runs, output / "report", protocol, summary=summary)
        print_tables(study.runs, protocol, summary=summary)
        print(f"page: {terminal.link(written['html'])}")
        print(f"next: hrbench show {output}; on your own images: hrbench run --root FOLDER --methods gaussian knn")
    return study
