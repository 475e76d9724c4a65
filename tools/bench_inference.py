"""Compare the way from PNG files to anomaly maps with the bare model: its speed, where the rest goes, and its memory.

    python tools/bench_inference.py --view tiled:512:128 --size 2048 --images 2 --profile
    python tools/bench_inference.py --methods l2bt --view whole:1036 --device cuda --images 64 --profile
    python tools/bench_inference.py --repeats 0 --memory 10 200 --sides 2048 10000

Per method and view, in native megapixels per second:

- model: ``Method.predict`` alone, on batches of prepared tiles that lie on the device, the last one as short as that of
  the pipeline;
- pipeline: decoding, tiling, transfer, ``predict``, blending, ``finish`` and the check, from files to maps on the host;
- ratio: pipeline to model. 1 means that everything around the model is hidden behind it. That of CPU seconds says what
  the pipeline adds in work; on a GPU it means nothing.

Both take turns in one process; ratios are medians of the repeats', after a warm-up.

``--profile`` times every stage by itself, with the device waited for: what threads do meanwhile and what is on the
critical path; wall-clock and CPU time, which differ where other processes take cores.

``--memory`` measures the peak over so many images, ``--sides`` that of one image of so many pixels on a side and of a
series of four; both in processes of their own and with a method that costs nothing, so that it is the pipeline's
memory. A native float32 map takes 4 bytes per pixel, a decoded image 3.

Weights are random; files are smooth noise and in the page cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hrbench import create_method
from hrbench.backbones import compile_frozen
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import AnomalyMap, finish
from hrbench.engine.device import device_name, peak_memory, pick_device, reset_peak_memory
from hrbench.engine.inference import NativeMaps, predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.views import Look, MapCanvas, View, stack_tiles, to_unit
from hrbench.imaging import read_image
from hrbench.method import Method, Prediction
from hrbench.precision import autocast, pick_precision
from hrbench.runs.environment import environment

Rows = list[dict[str, str]]


class Free(Method):
    """Costs nothing: the mean over channels, at stride 8."""

    def predict(self, batch: torch.Tensor) -> Prediction:
        """Return the mean."""
        return Prediction({"anomaly": torch.nn.functional.avg_pool2d(batch.mean(dim=1, keepdim=True), 8)[:, 0]})


@dataclass(frozen=True)
class Setup:
    """A method, a view, and how they are run."""

    method: str
    preset: str
    view: View
    batch_size: int
    device: torch.device
    precision: str
    compiled: bool = False

    def made(self) -> Method:
        """Return the method on its device."""
        torch.manual_seed(0)
        method = Free() if self.method == "free" else create_method(self.method, preset=self.preset, weights="random")
        self.view.check_multiple(method.multiple, self.method)
        method = method.to(self.device).eval()
        if self.compiled:
            compile_frozen(method, self.device)
        return method

    def run(self, method: Method, samples: Sequence[Sample]) -> None:
        """Bring all images from files to maps on the host, as a run does."""
        maps = predict(method, samples, self.view, self.device, batch_size=self.batch_size, precision=self.precision)
        with closing(ahead(AnomalyMap.scores, (finish(method, item) for item in maps))) as finished:
            deque(finished, maxlen=0)  # which keeps none

    @torch.no_grad()
    def predict(self, method: Method, batch: torch.Tensor) -> Prediction:
        """Return what the method says of a batch on the device."""
        with autocast(self.device, self.precision):
            return method.predict(batch)

    def wait(self) -> None:
        """Wait for a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fastflow"])
    parser.add_argument("--preset", default="native")
    parser.add_argument("--view", nargs="+", type=View.parse, default=[View.parse("tiled:512:128")])
    parser.add_argument("--size", type=int, default=2048, help="of the square images")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="0 leaves the comparison out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile frozen backbones")
    parser.add_argument("--profile", action="store_true", help="also time each stage by itself")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="IMAGES", help="peak over so many images")
    parser.add_argument("--sides", type=int, nargs="*", default=[], metavar="PIXELS", help="peak of one large image")
    parser.add_argument("--output", type=Path, help="also write the tables to this Markdown file")
    args = parser.parse_args()
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    known = environment()
    text = (
        f"# The way from files to anomaly maps\n\n`python {' '.join(['tools/bench_inference.py', *sys.argv[1:]])}`, "
        f"commit {known['commit']}: {device_name(device)}, {precision}, torch {known['torch']}; "
        f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores before it began\n"
    )
    print(text)

    def show(title: str, rows: Rows) -> None:
        nonlocal text
        section = f"\n{title}\n\n{table(rows)}\n"
        print(section, flush=True)
        text += section
        if args.output:
            args.output.write_text(text, encoding="utf-8")

    setups = [
        Setup(name, args.preset, view, args.batch_size, device, precision, args.compile)
        for name in args.methods
        for view in args.view
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = f"{args.images} images of {args.size} x {args.size}, batches of {args.batch_size}"
        if args.repeats:
            samples = files(folder, args.size, args.images)
            rows = [speeds(setup, samples, args.repeats) for setup in setups]
            show(f"{images}; medians of {args.repeats} turns", rows)
        if args.profile:
            sample = files(folder, args.size, 1)[0]
            for setup in setups:
                title = f"{setup.method}, {setup.view.text}: milliseconds per image, each stage by itself"
                show(title, profile(setup, sample))
        view = args.view[0]
        free = Setup("free", "", view, args.batch_size, device, precision)
        if args.memory:  # of a method that costs nothing
            rows = [{"images": str(n), **peaks(free, files(folder, args.size, n))} for n in args.memory]
            show(f"Peak memory, {view.text} of {args.size} x {args.size}", rows)
        if args.sides:
            rows = []
            for side in args.sides:
                for count in (1, 4):
                    row = {"pixels": f"{side} x {side}", "images": str(count)}
                    rows.append(row | peaks(free, files(folder, side, count), side * side))
            show(f"Peak memory, {view.text}, of one large image and of several", rows)


def files(folder: Path, size: int, count: int) -> list[Sample]:
    """Return `count` samples of one written image."""
    path = folder / f"{size}.png"
    if not path.is_file():
        coarse = np.random.default_rng(0).integers(0, 256, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, compress_level=1)
    return [Sample(f"{number}.png", path, None, 0, "good", "test", "noise") for number in range(count)]


def speeds(setup: Setup, samples: list[Sample], repeats: int) -> dict[str, str]:
    """Compare the pipeline with the model."""
    method = setup.made()
    pixels = read_image(samples[0].image)
    tiles = torch.cat([look.split(pixels)[0] for look in setup.view.looks])
    every = torch.cat([tiles] * len(samples))
    batches = [to_unit(batch, setup.device) for batch in every.split(setup.batch_size)]
    work = pixels.shape[0] * pixels.shape[1] * len(samples) / 1e6

    def model() -> None:
        for batch in batches:
            setup.predict(method, batch)

    ways: dict[str, Callable[[], None]] = {"model": model, "pipeline": lambda: setup.run(method, samples)}
    for shape in {batch.shape: batch for batch in batches}.values():
        setup.predict(method, shape)  # warm
    setup.run(method, samples[:1])
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            setup.wait()
            started = time.perf_counter(), time.process_time()
            way()
            setup.wait()
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])

    def ratio(seconds: dict[str, list[float]]) -> str:
        return f"{statistics.median(a / b for a, b in zip(seconds['model'], seconds['pipeline'], strict=True)):.3f}"

    return {
        "method": setup.method,
        "view": setup.view.text,
        "tiles": str(len(tiles)),
        **{f"{name} MP/s": f"{work / statistics.median(wall[name]):.3g}" for name in ways},
        "ratio": ratio(wall),
        **{f"{name} CPU s": f"{statistics.median(cpu[name]):.2f}" for name in ways},
        "ratio of CPU s": ratio(cpu),
    }


@torch.no_grad()
def profile(setup: Setup, sample: Sample, repeats: int = 3) -> Rows:
    """Time the stages that an image goes through, least of the repeats."""
    method, device, on_gpu = setup.made(), setup.device, setup.device.type == "cuda"
    rows: Rows = []

    def timed(stage: str, where: str, work: Callable[[], Any]) -> Any:
        taken, spent, done = [], [], None
        for _ in range(repeats):
            done = None  # nothing is kept twice
            setup.wait()
            started = time.perf_counter(), time.process_time()
            done = work()
            setup.wait()
            taken.append(1e3 * (time.perf_counter() - started[0]))
            spent.append(1e3 * (time.process_time() - started[1]))
        rows.append({"stage": stage, "where": where, "ms": f"{min(taken):.1f}", "CPU ms": f"{min(spent):.1f}"})
        return done

    path = "critical path" if not on_gpu else "device, critical path"
    pixels = timed("decode", "threads", lambda: read_image(sample.image))
    looks = timed("prepare", "threads", lambda: setup.view.prepare(pixels))
    tiles = [placement.cut(prepared, i) for prepared, placement in looks for i in range(len(placement))]
    chunks = [tiles[start : start + setup.batch_size] for start in range(0, len(tiles), setup.batch_size)]
    stacked = timed("cut and stack", "thread", lambda: [stack_tiles(chunk, pinned=on_gpu) for chunk in chunks])
    batches = timed("transfer and scale", path, lambda: [to_unit(batch, device) for batch in stacked])
    found = timed("forward", path, lambda: [setup.predict(method, batch) for batch in batches])
    names = list(found[0].maps)
    maps = {name: torch.cat([part.maps[name] for part in found]) for name in names}

    def merge() -> tuple[dict[str, torch.Tensor], ...]:
        parts, first = [], 0
        for _, placement in looks:
            merged = {}
            for name in names:
                canvas = MapCanvas(placement, device)
                for index in range(len(placement)):
                    canvas.add(index, maps[name][first + index])
                merged[name] = canvas.result()
            first += len(placement)
            parts.append(merged)
        return tuple(parts)

    parts = timed("merge", path, merge)
    timed("finish, check, to the host", path, lambda: finish(method, NativeMaps(sample, parts, None, ())).scores())
    return rows


def peaks(setup: Setup, samples: list[Sample], pixels: int = 0) -> dict[str, str]:
    """Measure the peaks of a run in a process of its own, also in bytes per pixel of images of `pixels`."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        before, host, device = process.submit(_peaks, setup, samples).result()
    found = {"host MiB": f"{host:.0f}", "above its start": f"{host - before:.0f}", "device MiB": f"{device:.0f}"}
    if pixels:
        per_pixel = 2**20 / pixels
        found["host B/px"] = f"{(host - before) * per_pixel:.1f}"
        found["device B/px"] = f"{device * per_pixel:.1f}"
    return found


def _peaks(setup: Setup, samples: list[Sample]) -> tuple[float, float, float]:
    method = setup.made()
    tile = setup.view.tile
    with tempfile.TemporaryDirectory() as folder:  # libraries are loaded, and threads have been there
        small = files(Path(folder), max(tile), 2)
        warm = Setup("free", "", View("", (Look("", tile),)), setup.batch_size, setup.device, setup.precision)
        warm.run(method, small)
    reset_peak_memory(setup.device)
    before = peak_memory(torch.device("cpu"))
    setup.run(method, samples)
    on_gpu = setup.device.type == "cuda"
    return before, peak_memory(torch.device("cpu")), peak_memory(setup.device) if on_gpu else 0.0


def table(rows: Rows) -> str:
    """Return a Markdown table."""
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    lines = [heads, ["-" * width for width in widths], *([row[head] for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |" for line in lines)


if __name__ == "__main__":
    main()
