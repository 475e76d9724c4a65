"""Check on one GPU, in under nine minutes and with nothing downloaded, what tests without one cannot.

    python tools/gpu_checklist.py                          # on a GPU; writes results/gpu/*.md
    python tools/gpu_checklist.py --device cpu --small     # a rehearsal in a few minutes; writes build/gpu/*.md
    python tools/gpu_checklist.py --only equality throughput

Sections, each with its seconds, after which what is left of it is left out, and said to be:

- equality: methods are fitted briefly, and predict the same images on the CPU in float32 and on the device in float32
  and bfloat16. Maps, in their standard deviations, rank metrics and decisions differ by no more than the tolerances;
- throughput: of all five methods from files to maps beside the bare model, and decoding alone, which is a floor;
- memory: what a larger image adds to the peak;
- halving: a batch that does not fit is halved, and the maps are those of batches that do;
- evidence: counted on the device and on the host, to equal bits;
- fit: steps per second beside a bare loop;
- model: what ``pipeline_model.py`` predicts of whole runs;
- compile: maps with compiled backbones, and the speed of both.

Every section writes its page when it is over, and the summary anew: an interruption loses nothing else. The exit
status is 1 where a check failed. On a CPU times are not judged, as they say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_evidence
import bench_fit
import bench_inference
import numpy as np
import pipeline_model
import torch
from bench_inference import Setup, files, table
from torch import Tensor

import hrbench
from hrbench import create_method
from hrbench.backbones import compile_frozen
from hrbench.data import make_dataset
from hrbench.data.sample import Category, Sample
from hrbench.engine.anomaly_map import finish
from hrbench.engine.device import device_name, peak_memory, pick_device, reset_peak_memory
from hrbench.engine.inference import WORKERS_CPU, WORKERS_GPU, predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import View
from hrbench.imaging import read_image, read_mask
from hrbench.method import Method, Prediction
from hrbench.precision import pick_precision
from hrbench.registry import find_preset, load_method
from hrbench.runs.environment import environment

CPU = torch.device("cpu")
METHODS = pipeline_model.METHODS
SECONDS = {
    "equality": 150,
    "throughput": 90,
    "memory": 50,
    "halving": 20,
    "evidence": 40,
    "fit": 40,
    "model": 60,
    "compile": 90,
}
IN_ALL = 530  # seconds after which nothing is begun

# Root mean square of the difference between maps, in standard deviations of the CPU's. Float32: a GPU's convolutions
# take TF32, of 11 bits, in every layer. Bfloat16 has 8: on a CPU 0.077 for FastFlow and 0.041 for U-Flow, whose maps
# are sums of squares of latents, and about 0.01 for the others.
TOLERANCES = {
    "float32": {"fastflow": 0.02, "uflow": 0.01, "rstpm": 0.01, "isstad": 0.01, "l2bt": 0.02},
    "bfloat16": {"fastflow": 0.15, "uflow": 0.1, "rstpm": 0.05, "isstad": 0.05, "l2bt": 0.1},
}
METRICS = (("pixel_auroc", None), ("aupro", 0.3), ("aupro", 0.05), ("image_auroc", None))
# Of the last of these a pair of images may change its order, too. Bfloat16: of maps after four steps of a fit RSTPM's
# AUPRO@0.05 changes by 0.0011 on a CPU.
RANKS = {"float32": 1e-3, "bfloat16": 3e-3}
DECIDED = {"float32": 1e-3, "bfloat16": 1e-2}  # share of pixels, at the rims of what is found


@dataclass(frozen=True)
class Check:
    """One line of the summary.

    Attributes
    ----------
    ok : bool or None
        None where it is not judged.
    """

    check: str
    expected: str
    found: str
    ok: bool | None

    def row(self) -> dict[str, str]:
        """Return the line."""
        said = {True: "yes", False: "NO", None: "not judged"}[self.ok]
        return {"check": self.check, "expected": self.expected, "found": self.found, "ok": said}


@dataclass
class Section:
    """What a section has to work with, and what it found."""

    device: torch.device
    small: bool
    folder: Path
    ends: float
    checks: list[Check] = field(default_factory=list)
    tables: list[tuple[str, list[dict[str, str]]]] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether times are judged."""
        return self.device.type == "cuda"

    def judged(self, check: str, expected: str, found: str, ok: bool) -> None:
        """Note a check."""
        self.checks.append(Check(check, expected, found, ok))

    def timed(self, check: str, expected: str, found: str, ok: bool) -> None:
        """Note a check that only a GPU is held to."""
        self.checks.append(Check(check, expected, found, ok if self.on_gpu else None))

    def each(self, names: Iterable[str]) -> Iterator[str]:
        """Yield names while there is time; those that are left fail."""
        for name in names:
            if time.monotonic() > self.ends:
                self.judged(name, "done in time", "left out", ok=False)
            else:
                yield name

    def wait(self) -> None:
        """Wait for a GPU."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="few images, small ones, and presets `demo`")
    parser.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS), metavar="SECTION")
    parser.add_argument("--output", type=Path, help="folder; by default results/gpu, on a CPU build/gpu")
    args = parser.parse_args()
    device = pick_device(args.device)
    output = args.output or Path("results/gpu" if device.type == "cuda" else "build/gpu")
    return run(device, output, args.only, small=args.small)


def run(device: torch.device, output: Path, only: Sequence[str], *, small: bool) -> int:
    """Run sections, write their pages and the summary, and return the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    known = environment()
    about = (
        f"`python tools/gpu_checklist.py {' '.join(sys.argv[1:])}`, commit {known['commit']}: {device_name(device)}, "
        f"{os.cpu_count()} cores, torch {known['torch']}\n"
    )
    found: list[tuple[str, Check]] = []
    seconds: dict[str, float] = {}
    last = time.monotonic() + IN_ALL
    if device.type == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in only:
            began = time.monotonic()
            section = Section(device, small, Path(folder), min(began + SECONDS[name], last))
            try:
                SECTIONS[name](section)
            except (Exception, SystemExit) as error:  # the others have their turn
                traceback.print_exc()
                section.judged(name, "no error", f"{type(error).__name__}: {error}".splitlines()[0], ok=False)
            seconds[name] = time.monotonic() - began
            text = f"# {name.capitalize()}\n\n{about}\n{table([check.row() for check in section.checks])}\n"
            text += "".join(f"\n{title}\n\n{table(rows)}\n" for title, rows in section.tables if rows)
            (output / f"{name}.md").write_text(text, encoding="utf-8")
            print(text, flush=True)
            found += [(name, check) for check in section.checks]
            rows = [{"section": part} | check.row() for part, check in found]
            failed = sum(check.ok is False for _, check in found)
            spent = ", ".join(f"{part} {taken:.0f}" for part, taken in seconds.items())
            summary = (
                f"# Checklist\n\n{about}\n{failed} of {len(found)} checks failed. Seconds: {spent}.\n\n{table(rows)}\n"
            )
            (output / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)
    return int(any(check.ok is False for _, check in found))


# --- Equality ---


def equality(section: Section) -> None:
    """Compare the device's maps and rank metrics with the CPU's."""
    train, test, size = (6, 4, 192) if section.small else (24, 12, 512)
    root = make_dataset(
        section.folder / "data",
        categories=["wood_grain"],
        size=(size, size),
        train=train,
        test_good=test,
        test_defective=test,
    )
    (category,) = hrbench.load_dataset("folder", root).categories
    rows = []
    for name in section.each(METHODS):
        rows += compared(section, name, category)
    section.tables.append((f"{2 * test} images of {size} x {size}; differences from the CPU in float32", rows))


def compared(section: Section, name: str, category: Category) -> list[dict[str, str]]:
    """Compare one method in both precisions."""
    preset = find_preset(load_method(name), name, "demo")
    view, options = View.parse(preset.view), dict(preset.options)
    if section.small:
        options |= {key: 4 for key in options if key.endswith("steps") and key != "flow_steps"}
    fitted = made(name, options, section.device).train()
    held_out = max(2, len(category.train) // 4)
    normals = [ViewedNormals(part, view) for part in (category.train[held_out:], category.train[:held_out])]
    with seeded(0):
        fitted.fit(normals[0], Fit(fitted, held_out=normals[1], seed=0, device=section.device))
    reference = made(name, options, CPU)
    load_learnt_state(reference, learnt_state(fitted))
    here = maps_of(reference, category.test, view, CPU, "float32", 8)
    masks = [None if sample.mask is None else read_mask(sample.mask) for sample in category.test]
    expected, bad = ranks(here, masks), sum(mask is not None for mask in masks)
    pair = 1 / (bad * (len(masks) - bad))
    rows = []
    for precision in ("float32", "bfloat16"):
        there = maps_of(fitted, category.test, view, section.device, precision, 5)
        difference = relative([a for a, _ in here], [b for b, _ in there])
        rank = [abs(a - b) for a, b in zip(expected, ranks(there, masks), strict=True)]
        tolerance, most = TOLERANCES[precision][name], RANKS[precision]
        what = f"{name}, {precision}"
        section.judged(f"{what}: maps", f"<= {tolerance:g} sd", f"{difference:.2g} sd", difference <= tolerance)
        pixels, images = max(rank[:-1]), rank[-1]
        section.judged(f"{what}: pixel metrics", f"within {most:g}", f"{pixels:.2g}", pixels <= most)
        bound = most + pair
        section.judged(f"{what}: image ROC-AUC", f"within {bound:.2g}", f"{images:.2g}", images <= bound)
        row = {"method": name, "precision": precision, "map, sd": f"{difference:.2g}", "decided otherwise": ""}
        row |= {
            f"{metric}{'' if limit is None else f'@{limit:g}'}": f"{value:.2g}"
            for (metric, limit), value in zip(METRICS, rank, strict=True)
        }
        if here[0][1] is not None:
            share = float(np.mean([np.mean(a != b) for (_, a), (_, b) in zip(here, there, strict=True)]))
            section.judged(
                f"{what}: decisions", f"<= {DECIDED[precision]:g}", f"{share:.2g}", share <= DECIDED[precision]
            )
            row["decided otherwise"] = f"{share:.2g}"
        rows.append(row)
    return rows


def made(name: str, options: dict[str, Any], device: torch.device) -> Method:
    with seeded(0):
        return create_method(name, **options).to(device)


Found = tuple[np.ndarray, np.ndarray | None]


def maps_of(
    method: Method, samples: Sequence[Sample], view: View, device: torch.device, precision: str, batch_size: int
) -> list[Found]:
    """Return map and decision of every image."""
    items = predict(method, samples, view, device, batch_size=batch_size, precision=precision)
    finished = [finish(method, item) for item in items]
    return [(item.scores(), item.decision()) for item in finished]


def relative(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the root mean square of the difference, in standard deviations of what is expected."""
    a, b = (np.concatenate([map_.ravel() for map_ in maps]).astype(np.float64) for maps in (expected, found))
    return float(np.sqrt(np.mean(np.square(a - b))) / a.std())


def ranks(found: Sequence[Found], masks: Sequence[np.ndarray | None]) -> list[float]:
    evaluation = hrbench.evaluate([map_ for map_, _ in found], masks)
    return [evaluation.value(metric, fpr_limit=limit) for metric, limit in METRICS]


# --- Throughput and memory ---


def setup_of(section: Section, name: str, **options: Any) -> Setup:
    """Return a method as a run on this device has it."""
    preset = "demo" if section.small else "native"
    view = View.parse(find_preset(load_method(name), name, preset).view)
    precision = pick_precision("auto", section.device)
    return replace(Setup(name, preset, view, 8, section.device, precision), **options)


def throughput(section: Section) -> None:
    """Compare whole pipelines with bare models, and with decoding alone."""
    side, count = (384, 2) if section.small else (2048, 32)
    samples = files(section.folder, side, count)
    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS_GPU if section.on_gpu else WORKERS_CPU) as threads:
        deque(threads.map(read_image, [sample.image for sample in samples]), maxlen=0)
    decode = count * side * side / 1e6 / (time.perf_counter() - began)
    rows = []
    for name in section.each(METHODS):
        setup = setup_of(section, name)
        row = bench_inference.speeds(setup, samples, 1 if section.small else 3)
        model, pipeline = float(row["model MP/s"]), float(row["pipeline MP/s"])
        floor = min(model, decode)
        section.timed(
            f"{name}: pipeline",
            f">= 0.9 x {floor:.3g} Mpx/s, the lesser of model and decoding",
            f"{pipeline:.3g} Mpx/s",
            pipeline >= 0.9 * floor,
        )
        kept = ("method", "view", "tiles", "model MP/s", "pipeline MP/s", "ratio")
        rows.append({key: row[key] for key in kept} | {"decoding alone MP/s": f"{decode:.3g}"})
    title = f"{count} images of {side} x {side}, {setup_of(section, METHODS[0]).precision}, random weights"
    section.tables.append((title, rows))


def memory(section: Section) -> None:
    """Measure what a larger image adds to the peak."""
    sides = (512, 1024) if section.small else (2048, 6144)
    rows = []
    for name in section.each(METHODS):
        setup = setup_of(section, name)
        method = setup.made()
        peaks = []
        for side in (sides[0], *sides):  # the first time to load what is loaded once
            samples = files(section.folder, side, 1)
            reset_peak_memory(section.device)
            setup.run(method, samples)
            section.wait()
            peaks.append(peak_memory(section.device))
        grown = (peaks[2] - peaks[1]) * 2**20 / (sides[1] ** 2 - sides[0] ** 2)
        section.timed(f"{name}: per pixel of a larger image", "<= 40 bytes", f"{grown:.1f} bytes", grown <= 40)
        row = {"method": name} | {f"{s} x {s}, MiB": f"{p:.0f}" for s, p in zip(sides, peaks[1:], strict=True)}
        rows.append(row | {"more, B/px": f"{grown:.1f}"})
    kind = "allocated on the device" if section.on_gpu else "resident in the process"
    section.tables.append((f"Peak, {kind}, batches of 8", rows))


# --- Halving and compiling ---


class Narrow(Method):
    """Has no room for more than so many inputs, as a device that is out of memory."""

    def __init__(self, method: Method, room: int) -> None:
        super().__init__()
        self.method, self.room = method, room

    def predict(self, batch: Tensor) -> Prediction:
        """Predict a batch that is small enough."""
        if len(batch) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.method.predict(batch)


@contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """Yield the list that warnings go to."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger(logger).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(logger).removeHandler(handler)


def halving(section: Section) -> None:
    """Provoke a lack of memory; on a GPU by a limit between what a batch takes and what a part of it takes."""
    setup = setup_of(section, "fastflow")
    samples = files(section.folder, 384 if section.small else 4096, 1)
    method, large = setup.made(), 8 if section.small else 64
    expected = maps_of(method, samples, setup.view, section.device, "float32", 2)
    if section.on_gpu:
        peaks = []
        for size in (2, large):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(section.device)
            maps_of(method, samples, setup.view, section.device, "float32", size)
            peaks.append(torch.cuda.max_memory_reserved(section.device))
        total = torch.cuda.get_device_properties(section.device).total_memory
        limit = peaks[0] + (peaks[1] - peaks[0]) / 3
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(limit / total, section.device)
    else:
        method = Narrow(method, 3)
    try:
        with warnings_of("hrbench") as said:
            found = maps_of(method, samples, setup.view, section.device, "float32", large)
    finally:
        if section.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, section.device)
    halved = sum("going on with" in text for text in said)
    section.judged("batches are halved", ">= 1 warning", f"{halved}: {'; '.join(said)}", halved >= 1)
    difference = relative([a for a, _ in expected], [b for b, _ in found])
    most = TOLERANCES["float32"]["fastflow"]
    section.judged("maps of halved batches", f"<= {most:g} sd", f"{difference:.2g} sd", difference <= most)


def compiled(section: Section) -> None:
    """Compare compiled backbones with those that are not."""
    samples = files(section.folder, 384 if section.small else 2048, 2 if section.small else 16)
    rows = []
    for name in section.each(["fastflow"] if section.small else ["fastflow", "l2bt"]):
        setup = setup_of(section, name)
        method = setup.made()
        precision, tolerance = setup.precision, TOLERANCES[setup.precision][name]

        def timed(method: Method = method, setup: Setup = setup) -> tuple[list[Found], float]:
            found = maps_of(method, samples[:1], setup.view, section.device, setup.precision, 8)
            taken = []
            for _ in range(3):
                section.wait()
                began = time.perf_counter()
                setup.run(method, samples)
                section.wait()
                taken.append(time.perf_counter() - began)
            return found, statistics.median(taken)

        expected, before = timed()
        began = time.perf_counter()
        works = compile_frozen(method, section.device)
        section.judged(f"{name}: torch.compile", "works", "works" if works else "does not", works)
        if not works:
            continue
        found, after = timed()
        difference = relative([a for a, _ in expected], [b for b, _ in found])
        what = f"{name}, {precision}: maps"
        section.judged(what, f"<= {tolerance:g} sd", f"{difference:.2g} sd", difference <= tolerance)
        took = time.perf_counter() - began
        row = {"method": name, "speed by it": f"{before / after:.2f}", "seconds with compiling": f"{took:.0f}"}
        rows.append(row)
    section.tables.append(("Whole pipelines", rows))


# --- Evidence, fit, model ---


def evidence(section: Section) -> None:
    """Count maps on the device and on the host."""
    rows: list[dict[str, str]] = []
    for side in (256,) if section.small else (2048, 4096):
        found = bench_evidence.rows(side, (torch.get_num_threads(),), 3, section.device)
        section.judged(f"{side} x {side}: bins, scores, decisions", "equal bits", "equal bits", ok=True)  # or no rows
        rows += [dict(zip(bench_evidence.HEADS, row, strict=True)) for row in found]
        speed = {row[2]: float(row[3]) for row in found}
        there, here = speed[bench_evidence.TORCH], speed.get(bench_evidence.FETCHED, speed[bench_evidence.NUMPY])
        section.timed(
            f"{side} x {side}: counting on the device", f"> {here:.0f} Mpx/s", f"{there:.0f} Mpx/s", there > here
        )
    section.tables.append(("Counting", rows))


def fit(section: Section) -> None:
    """Compare the fit loop with a bare one."""
    images, size, steps = (4, 512, 8) if section.small else (28, 512, 60)
    found = bench_fit.timed(
        bench_fit.written(section.folder, images, size), steps, 1 if section.small else 3, section.device
    )
    heads = ("loop", "steps/s", "of the bare loop", "processor s per step")
    rows = [dict(zip(heads, row.split(" | "), strict=True)) for row in found]
    share = float(rows[-1]["of the bare loop"])
    section.timed("steps per second, of a bare loop's", ">= 0.9", f"{share:.2f}", share >= 0.9)
    section.tables.append((f"FastFlow, preset demo, {steps} steps", rows))


def model(section: Section) -> None:
    """Hold the model of the pipeline against whole runs."""
    sample = files(section.folder, 384 if section.small else 2048, 1)[0]
    chip = next((c for c in pipeline_model.CHIPS if c.name in device_name(section.device)), pipeline_model.CHIPS[1])
    rows = []
    for name in section.each(METHODS):
        row = pipeline_model.held_against(name, section.device, sample, 2 if section.small else 24, chip)
        ratio = float(row["measured / predicted"])
        section.timed(
            f"{name}: measured / predicted", "0.5 to 2", f"{ratio:.2f}, set by {row['set by']}", 0.5 <= ratio <= 2
        )
        rows.append(row)
    section.tables.append((f"By the floors of {chip.name}", rows))


SECTIONS: dict[str, Callable[[Section], None]] = {
    "equality": equality,
    "throughput": throughput,
    "memory": memory,
    "halving": halving,
    "evidence": evidence,
    "fit": fit,
    "model": model,
    "compile": compiled,
}

if __name__ == "__main__":
    raise SystemExit(main())
