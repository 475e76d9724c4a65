"""Size and speed of the page of a large leaderboard: made-up runs, driven in a real browser.

    python tools/bench_page.py [--runs FOLDER | --page PAGE] [--categories 15] [--repeats 7] [--chromium PATH]

Thirteen configurations on each category. Those of the first one are measured on small made-up maps; the others get
their numbers, moved a little, as there is nothing to learn from measuring them again. No evidence and no pictures: the
page has neither curves nor photographs. Printed: seconds to summarise and to write, bytes, first paint, and the median
time from each interaction to the frame that shows it. FOLDER keeps runs and page, and is used again if it is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

import hrbench
from hrbench.metrics.measurement import Measured, measure
from hrbench.protocol import Protocol, load_protocol
from hrbench.report import summarise, write_leaderboard
from hrbench.runs.store import RECORD_COLUMNS, Run, find_runs

CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
METHODS = ("FastFlow", "L2BT", "U-Flow", "PatchCore", "k-NN", "Gaussian")
VIEWS = ("tiled:512:64", "whole:1036")
WEIGHTS = "wide_resnet50_2 file:wide_resnet50_2.pth sha256:0123456789ab"


@dataclasses.dataclass(frozen=True)
class Made:
    """A configuration to be, and how well it finds defects."""

    title: str
    view: str
    skill: float
    weights: str = WEIGHTS

    @property
    def name(self) -> str:
        """Of its runs."""
        return f"{self.title.lower()}-{self.view.replace(':', '-')}-{self.weights.split('_')[0]}-s0"


def configurations() -> list[Made]:
    """Return thirteen: each method in two views, and one with other weights."""
    made = [
        Made(title, view, 3.2 - 0.25 * i - 0.4 * j) for i, title in enumerate(METHODS) for j, view in enumerate(VIEWS)
    ]
    return [*made, Made("FastFlow", VIEWS[0], 2.9, "mobilenetv2_100 file:mobilenetv2_100.pth sha256:ba9876543210")]


def masks(rng: np.random.Generator, images: int = 60, side: int = 128) -> list[np.ndarray | None]:
    """Return masks with a few squares each; none for the second half."""
    found: list[np.ndarray | None] = []
    for _ in range(images // 2):
        mask = np.zeros((side, side), bool)
        for _ in range(5):
            size = int(np.exp(rng.uniform(0.7, 3)))
            top, left = rng.integers(0, side - size, 2)
            mask[top : top + size, left : left + size] = True
        found.append(mask)
    return [*found, *[None] * (images - len(found))]


def measured(made: Made, protocol: Protocol) -> Measured:
    """Measure made-up maps, whose noise is the same for all configurations."""
    rng = np.random.default_rng(0)
    truth = masks(rng)
    noise = [rng.normal(size=(128, 128)) for _ in truth]
    own = np.random.default_rng(sum(map(ord, made.name)))
    maps = [
        (n + 0.3 * own.normal(size=n.shape) + (0 if m is None else made.skill * m)).astype(np.float32)
        for n, m in zip(noise, truth, strict=True)
    ]
    return measure(hrbench.evaluate(maps, truth).evidence, protocol)


def moved(base: Measured, rng: np.random.Generator) -> Measured:
    """Return the same with its numbers moved a little."""
    shift = 0.04 * rng.normal()
    records = base.records.copy()
    share = ~records["metric"].str.startswith("a") | records["metric"].str.startswith("aup")
    for name in ("value", "ci_low", "ci_high"):
        records.loc[share, name] = (records.loc[share, name] + shift).clip(0, 1)
    draws = base.replicates.assign(
        values=[values + shift for values in base.replicates["values"]],
        estimate=base.replicates["estimate"] + shift,
    )
    images = base.images.assign(alarm=base.images["alarm"] + 0.3 * rng.normal(size=len(base.images)))
    components = base.components.assign(
        critical=base.components["critical"] + 0.3 * rng.normal(size=len(base.components))
    )
    return dataclasses.replace(base, records=records, components=components, images=images, replicates=draws)


def write(root: Path, made: Made, category: str, tables: Measured, protocol: Protocol) -> None:
    """Write one finished run."""
    folder = root / "runs" / "made up" / category / made.name
    folder.mkdir(parents=True)
    about = {"run": made.name, "dataset": "made up", "category": category, "method": made.title.lower()}
    about |= {"preset": "native", "view": made.view, "weights": made.weights, "seed": 0}
    tables.records.assign(**about)[list(RECORD_COLUMNS)].to_parquet(folder / "records.parquet")
    for name in ("components", "images", "replicates", "annotation"):
        getattr(tables, name).to_parquet(folder / f"{name}.parquet")
    settings = {
        "schema": 1, "run": made.name, "created": "2026-11-20T12:00:00+00:00",
        "dataset": {"name": "made up", "category": category, "index_sha256": category, "train": 200, "held_out": 20,
                    "test": 60, "test_defective": 30},
        "method": {"name": made.title.lower(), "title": made.title, "paper": "", "reference": "", "preset": "native",
                   "options": {}, "weights": {"backbone": made.weights}, "weights_licence": "Apache-2.0",
                   "parameters": 1000, "trainable": 10},
        "view": made.view, "seed": 0, "protocols": {"native": {"version": protocol.version, "sha256": protocol.digest}},
        "threshold": {"rule": "conformal", "value": 1.0, "normal_images": 20},
        "cost": {"fit_seconds": 60.0, "predict_seconds": 100.0, "megapixels_per_second": 1 + made.skill,
                 "ms_median": 300.0, "ms_p95": 400.0, "peak_memory_mib": 900.0},
        "device": "cpu", "environment": {"hrbench": "0.1.0", "commit": "", "python": "3", "torch": "2"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(settings), encoding="utf-8")


def make_runs(root: Path, categories: int) -> list[Run]:
    """Write the runs, and read them back."""
    protocol, rng = load_protocol("native"), np.random.default_rng(1)
    for made in configurations():
        base = measured(made, protocol)
        for number, category in enumerate(CATEGORIES[:categories]):
            write(root, made, category, moved(base, rng) if number else base, protocol)
    return find_runs(root)


FRAME = """
async (act) => {
  const start = performance.now();
  new Function(act)();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}
"""
ACTS = {
    "chip": "document.querySelector('.chip').click()",
    "search": """const field = document.querySelector('#search'); field.value = field.value ? '' : 'flow';
                 field.dispatchEvent(new Event('input'))""",
    "sort": "document.querySelector('table.overview th.number button').click()",
    "metric": """const pick = document.querySelector('.ranking select');
                 pick.selectedIndex = (pick.selectedIndex + 1) % pick.options.length;
                 pick.dispatchEvent(new Event('change', { bubbles: true }))""",
    "slider": """const range = document.querySelector('.alarms input');
                 range.value = (Number(range.value) + 1) % (Number(range.max) + 1);
                 range.dispatchEvent(new Event('input'))""",
    "open": "document.querySelector('main > section > details:not([open])').open = true",
}
"""What is done to the page, in its own words; each again and again."""


def drive(page: Path, chromium: str, repeats: int) -> dict[str, float]:
    """Return milliseconds: first paint, whole page ready, and the median of each interaction.

    An interaction lasts to the frame that shows it; beside it the processor time of the page's main thread, which says
    more on a busy machine.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1400, "height": 900})
        view.set_default_timeout(120_000)
        view.goto(page.as_uri())
        view.wait_for_timeout(2000)
        times = view.evaluate(
            "({paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,"
            " ready: performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart})"
        )
        found = {name: float(value) for name, value in times.items()}
        devtools = view.context.new_cdp_session(view)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def busy() -> float:
            metrics = devtools.send("Performance.getMetrics")["metrics"]
            return next(1000 * float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

        for name, act in ACTS.items():
            waits, works = [], []
            for _ in range(repeats):
                before = busy()
                waits.append(view.evaluate(f"act => ({FRAME})(act)", act))
                works.append(busy() - before)
            found[name], found[f"{name}, processor"] = float(np.median(waits)), float(np.median(works))
        browser.close()
    return found


def report(page: Path, chromium: str | None, repeats: int) -> None:
    """Print size and times of a page."""
    print(f"{page.stat().st_size / 1e6:.1f} MB")
    if chromium is None:
        print("no Chromium: not driven")
        return
    for name, value in drive(page.absolute(), chromium, repeats).items():
        print(f"{name:18} {value:6.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--categories", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--page", type=Path, help="drive this page, and write none")
    options = parser.parse_args()
    if options.page:
        report(options.page, options.chromium, options.repeats)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.runs or Path(temporary)
        runs = find_runs(root) if (root / "runs").is_dir() else make_runs(root, options.categories)
        start = time.perf_counter()
        summary = summarise(runs, load_protocol("native"))
        print(f"{len(runs)} runs, summarised in {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
        page = write_leaderboard(runs, root / "page", load_protocol("native"), summary=summary)["html"]
        print(f"written in {time.perf_counter() - start:.1f} s")
        report(page, options.chromium, options.repeats)


if __name__ == "__main__":
    main()
