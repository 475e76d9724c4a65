"""What the cases have in common: small data, a toy method, a place to play in, and the server that runs hrbench."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from .verdict import Finding, Outcome, changes, digests, judge_end, listing

HERE = Path(__file__).resolve().parent
QUICK = {  # checkpoints and chunks so small that a run of a second has many
    "hrbench.engine.training:CHECKPOINT_SECONDS": 0.02,
    "hrbench.runs.shards:CHUNK": 2,
    "hrbench.runs.runner:WAIT_SECONDS": 0.05,
    "hrbench.grid.local:WAIT_SECONDS": 0.05,
}

TOY = '''"""Learns a mean colour in two stages with one optimizer; its maps may depend on the size of the batch."""

import os
import time

import torch
from torch import nn

from hrbench.method import Method, Prediction, Preset


class Toy(Method):
    title = "Toy"
    paper = "none"
    presets = {"native": Preset("whole:32"), "demo": Preset("whole:32")}

    def __init__(self, steps: int = 8, noise: float = 0.05, pause: float = 0.0, by_batch: float = 0.0,
                 text: str = ""):
        super().__init__()
        self.colour = nn.Parameter(torch.rand(3))
        self.steps, self.noise, self.pause, self.by_batch = steps, noise, pause, by_batch

    def fit(self, normals, context):
        if "CAMPAIGN_JOURNAL" in os.environ and type(context).__name__ == "Fit":  # and no rehearsal of it
            with open(os.environ["CAMPAIGN_JOURNAL"], "a") as file:
                file.write("fit\\n")
        optimizer = torch.optim.Adam([self.colour], lr=0.05)

        def loss(batch):
            time.sleep(self.pause)
            noisy = batch + self.noise * torch.randn_like(batch)
            return (noisy - self.colour[:, None, None]).square().mean()

        for stage in ("first", "second"):
            context.train(normals, loss, optimizer, steps=self.steps, batch_size=4, description=stage)

    def predict(self, batch):
        time.sleep(self.pause)
        maps = (batch - self.colour[:, None, None]).square().sum(dim=1)
        return Prediction({"distance": maps + self.by_batch * len(batch) * maps.square()})
'''

PROTOCOL = """name = "{name}"
title = "{title}"
version = {version}
resolution = "native"
image_score = "method"
connectivity = 8
fpr_limits = {limits}
headline_fpr = {headline}

[size_bins]
quantiles = [0.25, 0.5, 0.75]
diameters = [8, 16, 32, 64, 128]

[threshold]
rule = "conformal"
alarms = 0.05

[alarm]
pixels = 1
budgets = [0.01, 0.02, 0.05, 0.10, 0.20]
headline = 0.05
summary = [0.01, 0.02, 0.05, 0.10]

[bootstrap]
{bootstrap}
"""

DESCRIPTOR = """name = {name}
title = "Parts"
layout = "{layout}"
licence = "own"
citation = "none"
url = "here"
{more}
"""


def protocol_text(
    *, name: str = "quick", title: str = "Quick", version: int = 1, limits: str = "[0.30, 0.10, 0.05, 0.01]",
    headline: str = "0.05", bootstrap: str = "draws = 20",
) -> str:  # fmt: skip
    """Return a protocol like native, but with few bootstrap draws."""
    return PROTOCOL.format(
        name=name, title=title, version=version, limits=limits, headline=headline, bootstrap=bootstrap
    )


def descriptor_text(name: str, *, layout: str = "folder", more: str = "") -> str:
    """Return a descriptor."""
    return DESCRIPTOR.format(name=json.dumps(name, ensure_ascii=False), layout=layout, more=more)


def write_tree(
    root: Path, *, categories: Sequence[str] = ("bolt", "nut"), train: int = 8, good: int = 3, bad: int = 5,
    size: tuple[int, int] = (48, 64), seed: int = 0,
) -> Path:  # fmt: skip
    """Write noise images with dark squares as defects, in MVTec AD layout."""
    for category in categories:
        rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
        place = root / category
        for number in range(train):
            save_image(place / "train/good" / f"{number:03d}.png", rng.normal(150, 6, (*size, 3)))
        for number in range(good):
            save_image(place / "test/good" / f"{number:03d}.png", rng.normal(150, 6, (*size, 3)))
        for number in range(bad):
            pixels, mask, side = rng.normal(150, 6, (*size, 3)), np.zeros(size), 2 + 3 * number
            top, left = rng.integers(0, size[0] - side), rng.integers(0, size[1] - side)
            mask[top : top + side, left : left + side] = 255
            pixels[mask > 0] -= 12
            save_image(place / "test/dent" / f"{number:03d}.png", pixels)
            save_image(place / "ground_truth/dent" / f"{number:03d}_mask.png", mask)
    return root


def save_image(path: Path, pixels: Any) -> Path:
    """Write an 8-bit image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def write_maps(root: Path, tree: Path, folder: Path, seed: int = 0) -> Path:
    """Write an anomaly map for every test image of a tree: noise, and the defects faintly."""
    rng = np.random.default_rng(seed)
    for image in sorted(tree.glob("*/test/*/*.png")):
        parts = image.relative_to(tree).parts
        mask = tree / parts[0] / "ground_truth" / parts[2] / f"{image.stem}_mask.png"
        with Image.open(image) as opened:
            scores = rng.normal(0, 1, opened.size[::-1]).astype(np.float32)
        if mask.is_file():
            scores += np.asarray(Image.open(mask), np.float32) / 255
        target = root / folder / image.relative_to(tree).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, scores)
    return root / folder


class Server:
    """A process of the interpreter to be tried, that runs hrbench in forks of itself."""

    def __init__(self, python: str, work: Path) -> None:
        self.python, self.work = python, work
        work.mkdir(parents=True, exist_ok=True)
        caches = {"MPLCONFIGDIR": str(work / "matplotlib"), "HOME": str(work / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with (work / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                [python, "-P", str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, env=self.environment, cwd=work, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise SystemExit(f"{python} cannot import hrbench:\n{(work / 'server.log').read_text(encoding='utf-8')}")

    def ask(self, **what: Any) -> Outcome:
        """Run a command or code in a fork; see ``server.py`` for what can be said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the server has died; see {self.work / 'server.log'}")
        return Outcome(**json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class World:
    """What is made once: data, methods, protocols, finished runs; nobody writes into it."""

    root: Path
    server: Server
    seed: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, the first time."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    @cached_property
    def tree(self) -> Path:
        """A dataset of two categories."""
        return write_tree(self.root / "tree")

    @cached_property
    def maps(self) -> Path:
        """Anomaly maps of that dataset."""
        return write_maps(self.root, self.tree, Path("maps"))

    def file(self, name: str, text: str) -> str:
        """Return the path of a file with this text."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.write_text(text, encoding="utf-8")
        return str(path)

    @property
    def toy(self) -> str:
        """The toy method."""
        return self.file("toy.py", TOY)

    @property
    def quick(self) -> str:
        """The protocol with few draws."""
        return self.file("quick.toml", protocol_text())

    def run_toy(self, *more: str, root: Path | None = None, methods: Sequence[str] = ()) -> list[str]:
        """Return the command that runs the toy on one category, but for its output."""
        where = [] if "--categories" in more or root else ["--categories", "bolt"]
        return ["run", "--root", str(root or self.tree), *where, "--methods", *(methods or [self.toy]), "--device",
                "cpu", "--protocol", self.quick, *more]  # fmt: skip

    def finished(self, name: str, *commands: Sequence[str]) -> Path:
        """Return an output folder in which these commands have been run, undisturbed."""

        def make() -> Path:
            output = self.root / "finished" / name
            for command in commands:
                outcome = self.server.ask(argv=[*command, "--output", str(output)], cwd=str(self.root), tune=QUICK)
                if outcome.code:
                    raise SystemExit(f"undisturbed {' '.join(command)} ended with {outcome.code}:\n{outcome.text}")
            return output

        made: Path = self.once(name, make)
        return made

    def alone(self) -> dict[str, str]:
        """Return the digests of the toy's run on one category, done alone."""
        output = self.finished("alone", self.run_toy())
        found: dict[str, str] = self.once("alone digests", lambda: digests(output))
        return found


@dataclass
class Stage:
    """The place of one case: a folder around the output folder, of which nothing may change."""

    world: World
    path: Path
    outcomes: list[Outcome] = field(default_factory=list)
    own_frames: str = ""
    _before: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("here", "tmp", "home"):
            (self.path / name).mkdir(parents=True)

    @property
    def out(self) -> Path:
        """The output folder."""
        return self.path / "here" / "out"

    @property
    def report(self) -> Path:
        """Where reports go; also an output folder."""
        return self.path / "here" / "report"

    @property
    def journal(self) -> Path:
        """Where the toy says that it fits."""
        return self.path / "journal"

    def file(self, name: str, content: str | bytes) -> str:
        """Write a file of the case."""
        path = self.path / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def tree(self, name: str = "data", **options: Any) -> Path:
        """Write a dataset of the case."""
        return write_tree(self.path / "given" / name, **{"categories": ("bolt",), **options})

    def copy(self, finished: Path) -> Path:
        """Let the output folder be a copy of a finished one."""
        shutil.copytree(finished, self.out, symlinks=True)
        return self.out

    def set(self) -> None:
        """Remember what is there: from now on only the output folders and the journal may change."""
        self._before = self._listing()

    def hrbench(self, *argv: str, **how: Any) -> Outcome:
        """Run a command in a fork of the server."""
        return self._ask(argv=list(argv), **how)

    def python(self, code: str, arguments: Any = None, **how: Any) -> Outcome:
        """Run code in a fork of the server."""
        return self._ask(code=code, arguments=arguments, **how)

    def process(self, *argv: str, signal_after: tuple[float, int] | None = None, timeout: float = 60) -> Outcome:
        """Run a command in a process of its own, for what happens while hrbench is imported; may signal it."""
        if not self._before:
            self.set()
        process = subprocess.Popen(
            [self.world.server.python, "-m", "hrbench", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self.path / "here", text=True, errors="replace", env={**self.world.server.environment, **self._env()},
        )  # fmt: skip
        ended_by = ""
        if signal_after:
            try:
                process.wait(signal_after[0])
            except subprocess.TimeoutExpired:
                process.send_signal(signal_after[1])
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            (out, err), ended_by = process.communicate(), "time"
        self.outcomes.append(Outcome(process.returncode, out, err, ended_by=ended_by))
        return self.outcomes[-1]

    def _ask(self, **what: Any) -> Outcome:
        if not self._before:
            self.set()
        environment = {**self._env(), **what.pop("env", {})}
        cwd = what.pop("cwd", str(self.path / "here"))
        self.outcomes.append(self.world.server.ask(cwd=cwd, env=environment, **{"timeout": 60, **what}))
        return self.outcomes[-1]

    def _env(self) -> dict[str, str]:
        journal = {"CAMPAIGN_JOURNAL": str(self.journal)}
        return {"TMPDIR": str(self.path / "tmp"), "HOME": str(self.path / "home"), **journal}

    def _listing(self) -> dict[str, str]:
        return listing(self.path, [self.out, self.report])

    def fits(self) -> int:
        """Return how many fits have begun."""
        return self.journal.read_text().count("fit") if self.journal.is_file() else 0

    def judge(self) -> list[Finding]:
        """Return what is wrong whatever the case was about: ends of commands, and what lies outside the output."""
        findings = [finding for outcome in self.outcomes for finding in judge_end(outcome, own_frames=self.own_frames)]
        if not self._before:
            return findings
        harmless = ("'here/out'", "'here/report'", "'journal'", "'home/.cache", "'home/.config")
        for words in changes(self._before, self._listing()):
            if words.startswith("'tmp/torchinductor"):
                continue  # torch makes it when it is imported
            if words.startswith("'tmp/"):
                findings.append(Finding("other", f"left over in the temporary folder: {words}"))
            elif not words.startswith(harmless):
                findings.append(Finding("outside", words))
        return findings


@dataclass(frozen=True)
class Case:
    """One thing that is done, and what must be said of it."""

    family: str
    item: str
    name: str
    play: Callable[[Stage], Iterable[Finding]]


def leaderboard_values(report: Path) -> pd.DataFrame:
    """Return the leaderboard as text."""
    return pd.read_csv(report / "leaderboard.csv", dtype=str, keep_default_na=False)
