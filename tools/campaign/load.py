"""Load: memory of large pictures, and time and memory of many configurations."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .verdict import Finding, Outcome, judge_success
from .world import Case, Stage, write_maps, write_tree

SIDES = (1500, 3000)
MOST_BYTES = {"run": 16 + 12, "evaluate": 4 + 12}  # per pixel: what inference takes, or a map, and 12 for the rest
CONFIGURATIONS = 200
MOST_SECONDS, MOST_MIB, MOST_PAGE_MIB = 60.0, 600.0, 10.0  # before: 46 s, 1 GiB, a page of 52 MB


def pictures(command: str) -> Case:
    """Return a case that measures how the peak grows with the pixels of an image, pictures included."""

    def play(stage: Stage) -> Iterable[Finding]:
        peaks = []
        for side in SIDES:
            root = write_tree(
                stage.path / "given" / str(side), categories=("bolt",), train=2, good=1, bad=1, size=(side, side)
            )
            output = str(stage.out / str(side))
            if command == "run":
                argv = [*stage.world.run_toy("--batch-size", "1", root=root), "--output", output]
            else:
                maps = write_maps(stage.path / "given", root, Path(f"maps-{side}"))
                argv = ["evaluate", "--root", str(root), "--maps", str(maps), "--protocol", stage.world.quick,
                        "--name", "theirs", "--output", output]  # fmt: skip
            stage.set()
            outcome = stage.hrbench(*argv, timeout=500, memory_mib=12000)
            yield from judge_success(outcome)
            peaks.append(outcome.peak_mib)
        slope = (peaks[1] - peaks[0]) * 2**20 / (SIDES[1] ** 2 - SIDES[0] ** 2)
        print(f"{command}: {slope:.1f} bytes per pixel, {peaks[1]:.0f} MiB at {SIDES[1]} x {SIDES[1]}", flush=True)
        if slope > MOST_BYTES[command]:
            yield Finding("other", f"{slope:.1f} bytes per pixel, expected at most {MOST_BYTES[command]:g}")

    return Case("load", "9", f"{command}, pictures of {SIDES[1]} x {SIDES[1]} pixels", play)


def many_configurations(stage: Stage) -> Iterable[Finding]:
    """Time, memory and page of a leaderboard of 200 configurations."""

    def make() -> Path:
        output = stage.world.root / "many"
        code = "from hrbench.cli import main\nfor argv in ARGUMENTS: assert main(argv) == 0"
        values = np.linspace(0, 0.2, CONFIGURATIONS)
        argvs = [
            [*stage.world.run_toy("--set", "steps=1", f"noise={value:.6f}"), "--output", str(output)]
            for value in values
        ]
        outcome = stage.world.server.ask(code=code, arguments=argvs, cwd=str(stage.world.root), timeout=1800)
        if outcome.code:
            raise RuntimeError(outcome.err[-300:])
        return output

    runs = stage.world.once("many", make)
    stage.set()
    idle: Outcome = stage.python("pass")
    for command, most in (("leaderboard", MOST_SECONDS), ("plot", 3 * MOST_SECONDS)):
        argv = [command, str(runs), "--output", str(stage.report), "--protocol", stage.world.quick]
        outcome = stage.hrbench(*argv, timeout=600, memory_mib=8000)
        yield from judge_success(outcome)
        page = stage.report / "leaderboard.html"
        size = page.stat().st_size / 2**20 if page.is_file() else 0.0
        memory = outcome.peak_mib - idle.peak_mib
        words = f"{command}: {outcome.seconds:.0f} s, {memory:.0f} MiB above the imports, page {size:.1f} MiB"
        print(words, flush=True)
        if outcome.seconds > most or memory > MOST_MIB or size > MOST_PAGE_MIB:
            yield Finding("other", f"{words}; expected at most {most:g} s, {MOST_MIB:g} MiB, {MOST_PAGE_MIB:g} MiB")
    markdown = (stage.report / "leaderboard.md").read_text(encoding="utf-8")
    if "#" in markdown and "noise=" not in markdown and "noise" not in markdown:
        yield Finding("other", "rows do not say the option in which they differ")


def cases(args: argparse.Namespace) -> Iterable[Case]:
    """Yield all cases of the family."""
    del args
    for command in ("evaluate", "run"):
        yield pictures(command)
    yield Case("load", "11", f"{CONFIGURATIONS} configurations", many_configurations)
