"""Whether exported methods say what the methods say: every method and format, through the script beside the graph.

    python tools/check_export.py [--bsdata ROOT --weights mobilenetv2_100.pth] [--scratch FOLDER] [--output FILE.md]

Methods are fitted in their ``demo`` preset on the demo's weave (57 normal images of 256 x 256), and with --bsdata three
of them on photographs of ball screws, with MobileNetV2 in tiles of 512 pixels at camera pitch, one also on resized
photographs. A detector is exported, which compares it on five images and refuses if it differs; then
``run_exported.py`` runs on all images in a process of its own, that does not import hrbench, and its verdicts, boxes
and maps are compared with the detector's.

With --scratch, fits and exports that are there are used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

import hrbench
from hrbench.data import load_dataset, make_dataset
from hrbench.errors import HrbenchError
from hrbench.runs.detector import Detector, Verdict
from hrbench.runs.export import FORMATS, apart

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN = ("gaussian", "knn", "fastflow", "uflow", "rstpm", "isstad", "l2bt")
PHOTOGRAPHED = (("gaussian", "tiled:512:128"), ("knn", "tiled:512:128"), ("fastflow", "tiled:512:128"),
                ("gaussian", "whole:224x544"))  # fmt: skip
HEADINGS = ("images", "method", "view", "format", "verdicts equal", "alarms", "boxes equal", "maps differ by", "MB")


@dataclass(frozen=True)
class Task:
    """A method, how it is fitted and on what, and the images to compare on."""

    images: str
    method: str
    train: Sequence[Path]
    test: Sequence[Path]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its files."""
        view = self.settings.get("view", "").partition(":")[0]
        return "-".join(filter(None, (self.images.partition(",")[0].replace(" ", "_"), self.method, view)))


def demo_tasks(folder: Path) -> Iterator[Task]:
    root = folder / "procedural"
    if not root.exists():
        make_dataset(root, categories=("weave",), size=(256, 256), train=57, test_good=25, test_defective=25)
    train, test = (sorted((root / "weave" / split).rglob("*.png")) for split in ("train", "test"))
    for method in BUILT_IN:
        yield Task(f"weave, {len(test)}", method, train, test, {})


def photographed_tasks(root: Path, weights: Path) -> Iterator[Task]:
    descriptor = ROOT / "results" / "measured" / "bsdata" / "bsdata.toml"
    (category,) = load_dataset(str(descriptor), root).categories
    train = [sample.image for sample in category.train[::8]]
    good, bad = ([sample.image for sample in category.test if sample.label == label] for label in (0, 1))
    test = [*good[:: len(good) // 25][:25], *bad[:: len(bad) // 25][:25]]
    options = {"backbone": "mobilenetv2_100", "weights": str(weights), "strides": (4, 8)}
    for method, view in PHOTOGRAPHED:
        yield Task(f"ball screws, {len(test)}", method, train, test, {"view": view, "options": options})


def fitted(task: Task, folder: Path) -> Detector:
    kept = folder / task.name
    if kept.exists():
        weights = {key: value for key, value in task.settings.get("options", {}).items() if key == "weights"}
        return Detector.load(kept, device="cpu", options=weights)
    detector = hrbench.fit(task.method, task.train, preset="demo", device="cpu", **task.settings)
    detector.save(kept)
    return detector


def row_of(task: Task, suffix: str, detector: Detector, verdicts: Sequence[Verdict], folder: Path) -> list[str]:
    start = [task.images, detector.about.method.title, detector.view.text, suffix]
    graph = folder / f"{task.name}{suffix}"
    try:
        if not graph.exists():
            detector.export(graph, task.test[::10])
    except HrbenchError as error:
        return [*start, str(error), "", "", "", ""]
    files = sorted(path for path in folder.glob(f"{graph.stem}.*") if path.suffix == suffix)
    with tempfile.TemporaryDirectory() as maps:
        script = [sys.executable, "-I", str(folder / "run_exported.py"), f"{graph}.json", *map(str, task.test)]
        done = subprocess.run([*script, "--maps", maps], capture_output=True, text=True, check=True)
        said = [json.loads(line) for line in done.stdout.splitlines()]
        found = [tifffile.imread(path) for path in sorted(Path(maps).iterdir())]
    equal = sum(own["alarm"] == verdict.called for own, verdict in zip(said, verdicts, strict=True))
    alarms = sum(bool(verdict.called) for verdict in verdicts)
    boxes = sum(boxes_of(own) == original_boxes(verdict) for own, verdict in zip(said, verdicts, strict=True))
    pairs = zip(found, verdicts, strict=True)
    difference = max(apart(detector, map_, verdict.anomaly_map) for map_, verdict in pairs)
    size = sum(path.stat().st_size for path in files) / 1e6
    number = len(task.test)
    return [*start, f"{equal} of {number}", str(alarms), f"{boxes} of {number}", f"{difference:.1g}", f"{size:.1f}"]


def boxes_of(said: Mapping[str, Any]) -> list[tuple[int, ...]]:
    keys = ("left", "top", "right", "bottom", "area")
    return [tuple(part[key] for key in keys) for part in said["components"]]


def original_boxes(verdict: Verdict) -> list[tuple[int, ...]]:
    return [(part.left, part.top, part.right, part.bottom, part.area) for part in verdict.components]


def page(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    return """# Exported methods beside the original

`python tools/check_export.py --bsdata ROOT --weights mobilenetv2_100.pth`: methods fitted in their `demo` preset,
exported, and run by the `run_exported.py` that is written beside the graph, in a process that does not import hrbench.
Half of the images have defects. A verdict is whether any pixel reaches the promised threshold; boxes are equal if all
corners and areas of all components of an image are. The difference is the largest of any pixel of any image, in units
of its score's distance from the median score of normal pixels, at least of the threshold's: rounding, and through a
view that resizes what pillow rounds otherwise than torch. MB are those of the graphs, weights included.

""" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare exported methods with the originals.")
    parser.add_argument("--bsdata", type=Path, help="folder of the photographs of ball screws")
    parser.add_argument("--weights", type=Path, help="MobileNetV2, for --bsdata")
    parser.add_argument("--methods", nargs="+", default=BUILT_IN)
    parser.add_argument("--scratch", type=Path, help="folder that keeps fits and graphs")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "export.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.scratch or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [task for task in demo_tasks(folder) if task.method in given.methods]
        if given.bsdata is not None:
            tasks = [*photographed_tasks(given.bsdata, given.weights), *tasks]
        rows: list[list[str]] = []
        for task in tasks:
            detector = fitted(task, folder)
            verdicts = list(detector.predict(task.test))
            for suffix in FORMATS:
                rows.append(row_of(task, suffix, detector, verdicts, folder))
                print(" | ".join(rows[-1]), flush=True)
                given.output.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
