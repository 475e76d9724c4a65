"""Time, peak memory and value of evaluation engines on generated sets, each in a process of its own, on one core.

    python tools/bench_metrics.py                                 # hrbench, numpy and scikit-learn
    pip install torchmetrics adeval anomalib                      # any of them adds its rows
    python tools/bench_metrics.py --sets C100 --repeat 5 --output results/bench_metrics.md

The sets are those of the project's requirements: ``B20`` 20 images of 2048^2, ``C100`` 100 of 1024^2, ``R2`` two of
1024^2 with 1 % of random defect pixels, which are about 19,000 components. Scores are exp(0.8 x) of a smooth Gaussian
field, so they have a heavy tail. Reading files does not count. Memory is the peak above the process with its imports
and, for engines that stream, one image's arrays; for the others, all images' arrays. ``numpy.argsort`` of all scores
is the baseline: what an engine that sorts every pixel cannot be faster than. Mpx/s and ratios are of CPU seconds, for
other work on the machine to matter less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

SETS = {"B20": (20, 2048), "C100": (100, 1024), "R2": (2, 1024)}
LIMIT = 0.05
SLOW_SECONDS = 20  # of CPU: such an engine is measured once
Pair = tuple[np.ndarray, np.ndarray]


def generate(name: str, folder: Path) -> None:
    """Write a set's scores (float32) and masks (bool) as one ``.npy`` each per image."""
    images, side = SETS[name]
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    for index in range(images):
        field = ndimage.gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 3, truncate=2)
        field /= field.std()
        field += 0.05 * rng.standard_normal((side, side), dtype=np.float32)
        mask = np.zeros((side, side), dtype=bool)
        if name == "R2":
            mask = rng.random((side, side)) < 0.01
            field[mask] += 1.5
        elif index % 4:
            for _ in range(13):
                area = np.exp(rng.uniform(np.log(6), np.log(0.01 * side * side)))
                aspect, turn = np.exp(rng.uniform(-1, 1)), rng.uniform(0, np.pi)
                y, x = rows - rng.uniform(0, side), columns - rng.uniform(0, side)
                u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
                blob = u * u / aspect + v * v * aspect < area / np.pi
                mask |= blob
                field[blob] += 1.2 + 0.15 * np.log(area)
        np.save(folder / f"{index:03d}.scores.npy", np.exp(0.8 * field))
        np.save(folder / f"{index:03d}.mask.npy", mask)


class Set:
    """A generated set; the time of what does not count, reading above all, is kept apart (wall, CPU)."""

    def __init__(self, folder: Path, given: Sequence[Pair] = ()) -> None:
        self.paths = sorted(folder.glob("*.scores.npy"))
        self.given = given
        self.apart = [0.0, 0.0]

    def images(self) -> Iterator[Pair]:
        """Yield scores and mask, one image at a time; of the given images where there are any."""
        if self.given:
            yield from self.given
            return
        for path in self.paths:
            yield self._read(path)  # and keep none

    def _read(self, path: Path) -> Pair:
        with self.uncounted():
            return np.load(path), np.load(path.with_name(path.name.replace("scores", "mask")))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave out the time of what is done inside."""
        before = (time.perf_counter(), time.process_time(), *self.apart)
        yield
        self.apart = [before[2] + time.perf_counter() - before[0], before[3] + time.process_time() - before[1]]

    def stack(self) -> Pair:
        """Return all scores and all masks, (N, H, W)."""
        scores, masks = zip(*self.images(), strict=True)
        return np.stack(scores), np.stack(masks)


def hrbench_engine(*, exact: bool) -> Callable[[Set], dict[str, float]]:
    """Return all metrics and size subsets of the native protocol, labelling included, image by image."""
    from hrbench import load_protocol
    from hrbench.evidence import EvidenceCollector, EvidenceSpec
    from hrbench.metrics import compute

    protocol = load_protocol("native")

    def run(data: Set) -> dict[str, float]:
        collector = EvidenceCollector(EvidenceSpec(exact=exact))
        for index, (scores, mask) in enumerate(data.images()):
            collector.update(f"{index:03d}", scores, mask)
            del scores, mask
        evidence = collector.result()
        del collector
        table = compute(evidence, protocol, threshold=5.0)
        rows = table[(table["subset"] == "all")].set_index("metric")
        aupro = rows[rows["fpr_limit"] == LIMIT].loc["aupro"]
        return {
            "aupro": aupro["value"],
            "auroc": rows.loc["pixel_auroc", "value"],
            "bound": float(
                table.loc[~table["metric"].str.startswith(("iou", "f1", "miou", "fpr")), "error_bound"].max()
            ),
            "rows": len(table),
        }

    return run


def bootstrap_engine() -> Callable[[Set], dict[str, float]]:
    """Return 1000 bootstrap replicates of all metrics; collecting the evidence does not count."""
    from hrbench import load_protocol
    from hrbench.evidence import EvidenceCollector, EvidenceSpec
    from hrbench.metrics.bootstrap import replicates

    protocol = load_protocol("native")

    def run(data: Set) -> dict[str, float]:
        with data.uncounted():
            collector = EvidenceCollector(EvidenceSpec())
            for index, (scores, mask) in enumerate(data.images()):
                collector.update(f"{index:03d}", scores, mask)
            evidence = collector.result()
        return {"rows": float(len(replicates(evidence, protocol, threshold=5.0).keys))}

    return run


def argsort_engine() -> Callable[[Pair], dict[str, float]]:
    """Return nothing but the order of all scores."""

    def run(data: Pair) -> dict[str, float]:
        np.argsort(data[0].ravel())
        return {}

    return run


def joint_sort_engine() -> Callable[[Pair], dict[str, float]]:
    """Return AUPRO at one limit as the first public evaluators do: one sort of all pixels, cumulative sums."""

    def run(data: Pair) -> dict[str, float]:
        scores, masks = data
        gains = np.zeros(masks.shape, dtype=np.float32)
        number = 0
        for mask, gain in zip(masks, gains, strict=True):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            number += count
            gain[mask] = (1 / np.bincount(labels.ravel())[labels[mask]]).astype(np.float32)
        order = np.argsort(scores.ravel())[::-1]
        fpr = np.cumsum(~masks.ravel()[order], dtype=np.float64)
        pro = np.cumsum(gains.ravel()[order], dtype=np.float64)
        ranked = scores.ravel()[order]
        last = np.append(ranked[1:] != ranked[:-1], True)
        fpr, pro = np.append(0, fpr[last] / fpr[-1]), np.append(0, pro[last] / number)
        end = np.searchsorted(fpr, LIMIT, side="right")
        fpr, pro = np.append(fpr[:end], LIMIT), np.append(pro[:end], np.interp(LIMIT, fpr, pro))
        return {"aupro": float(np.trapezoid(pro, fpr)) / LIMIT}

    return run


def sklearn_engine() -> Callable[[Pair], dict[str, float]]:
    """Return pixel AUROC by scikit-learn."""
    from sklearn.metrics import roc_auc_score

    return lambda data: {"auroc": roc_auc_score(data[1].ravel(), data[0].ravel())}


def torchmetrics_engine() -> Callable[[Pair], dict[str, float]]:
    """Return pixel AUROC by torchmetrics, exact."""
    import torch
    from torchmetrics.classification import BinaryAUROC

    torch.set_num_threads(1)

    def run(data: Pair) -> dict[str, float]:
        metric = BinaryAUROC(thresholds=None, validate_args=False)
        # It passes scores outside [0, 1] through a sigmoid, which would saturate: bring them inside, in order.
        inside = torch.from_numpy(data[0]).ravel()
        metric.update(inside / (1 + inside), torch.from_numpy(data[1]).ravel())
        return {"auroc": float(metric.compute())}

    return run


def adeval_engine() -> Callable[[Pair], dict[str, float]]:
    """Return AUPRO@0.3 and pixel AUROC by adeval, 1000 uniform bins."""
    setattr(np, "trapz", np.trapezoid)  # noqa: B010 - the package still calls it
    from adeval import EvalAccumulator

    def run(data: Pair) -> dict[str, float]:
        scores, masks = data
        low, high = float(scores.min()), float(scores.max())
        accumulator = EvalAccumulator(low, high, low, high, skip_pixel_aupro=False)
        for score, mask in zip(scores, masks, strict=True):
            accumulator.add_anomap_batch(score[None], mask[None].astype(np.uint8))
        found = accumulator.summary()
        return {"aupro30": float(found["p_aupro"]), "auroc": float(found["p_auroc"])}

    return run


def anomalib_engine() -> Callable[[Pair], dict[str, float]]:
    """Return AUPRO at the limit by anomalib."""
    import torch
    from anomalib.metrics.aupro import _AUPRO as AUPRO

    torch.set_num_threads(1)

    def run(data: Pair) -> dict[str, float]:
        metric = AUPRO(fpr_limit=LIMIT)
        metric.update(torch.from_numpy(data[0]), torch.from_numpy(data[1]))
        return {"aupro": float(metric.compute())}

    return run


ENGINES: dict[str, tuple[str, bool, Callable[[], Callable[[Any], dict[str, float]]]]] = {
    "numpy.argsort, nothing else": ("numpy", False, argsort_engine),
    "hrbench, one pass": ("hrbench", True, lambda: hrbench_engine(exact=False)),
    "hrbench, 1000 bootstrap replicates": ("hrbench", True, bootstrap_engine),
    "hrbench, exact": ("hrbench", True, lambda: hrbench_engine(exact=True)),
    "joint sort, AUPRO only": ("numpy", False, joint_sort_engine),
    "scikit-learn, AUROC only": ("sklearn", False, sklearn_engine),
    "torchmetrics, AUROC only": ("torchmetrics", False, torchmetrics_engine),
    "adeval, 1000 bins": ("adeval", False, adeval_engine),
    "anomalib, AUPRO only": ("anomalib", False, anomalib_engine),
}


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Run one engine on one set in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _, streams, make = ENGINES[engine]
    run, data = make(), Set(folder)
    first = next(data.images())
    given: Any = data
    if streams:  # with what is loaded on first use
        run(Set(folder, [(first[0][:64, :64], np.pad(np.ones((62, 62), dtype=bool), 1))] * 2))
        own = sum(part.nbytes for part in first)
    else:
        given, own = data.stack(), 0
    pixels = sum(np.load(path, mmap_mode="r").size for path in data.paths)
    del first
    before = _reset_peak()
    data.apart = [0.0, 0.0]
    wall, cpu = time.perf_counter(), time.process_time()
    values = run(given)
    wall, cpu = time.perf_counter() - wall - data.apart[0], time.process_time() - cpu - data.apart[1]
    extra = max(0, _status("VmHWM") - before - own)
    return {"seconds": wall, "cpu": cpu, "pixels": pixels, "extra": extra, **values}


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("peak memory: /proc/self/status has no " + field)


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def main() -> None:
    """Parse arguments, run every engine on every set and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES, metavar="ENGINE")
    parser.add_argument("--repeat", type=int, default=3, help="processes per engine; the median counts")
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], Path(args.one[1]))))
        return
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name in args.sets:
            folder = Path(root) / name
            folder.mkdir()
            generate(name, folder)
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(args.repeat):  # engine after engine, so that a busy minute hits all alike
                for engine in args.engines:
                    slow = any(run["cpu"] > SLOW_SECONDS for run in found.get(engine, []))
                    if slow or importlib.util.find_spec(ENGINES[engine][0]) is None:
                        continue
                    command = [sys.executable, __file__, "--one", engine, str(folder)]
                    done = subprocess.run(command, env={**os.environ, **single}, capture_output=True, text=True)
                    if done.returncode:
                        print(f"{engine} on {name} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                        continue
                    found.setdefault(engine, []).append(json.loads(done.stdout.splitlines()[-1]))
            rows += [_row(name, engine, runs, found) for engine, runs in found.items()]
    about = (
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"one core, median of {args.repeat} processes (one where it takes more than {SLOW_SECONDS} CPU s)"
    )
    text = f"{about}\n\n{pd.DataFrame(rows).to_markdown(index=False)}\n" if _tabulate() else _plain(about, rows)
    print(text)
    if args.output:
        args.output.write_text(f"# Evaluation engines\n\n`python tools/bench_metrics.py`: {text}", encoding="utf-8")


def _row(name: str, engine: str, runs: list[dict[str, Any]], found: dict[str, Any]) -> dict[str, Any]:
    middle = {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
    base = found.get("numpy.argsort, nothing else")
    ratio = np.median([run["cpu"] for run in base]) / middle["cpu"] if base else float("nan")
    value = {key: f"{middle[key]:.6f}" if key in middle else "" for key in ("aupro", "auroc")}
    return {
        "set": name,
        "engine": engine,
        "wall s": f"{middle['seconds']:.2f}",
        "CPU s": f"{middle['cpu']:.2f}",
        "Mpx/s": f"{middle['pixels'] / middle['cpu'] / 1e6:.1f}",
        "x argsort": f"{ratio:.1f}",
        "MiB above": f"{middle['extra'] / 2**20:.0f}",
        "B/px": f"{middle['extra'] / middle['pixels']:.2f}",
        f"AUPRO@{LIMIT:g}": value["aupro"] or (f"{middle['aupro30']:.6f} (@0.3)" if "aupro30" in middle else ""),
        "pixel AUROC": value["auroc"],
        "bound": f"{middle['bound']:.1e}" if "bound" in middle else "",
    }


def _tabulate() -> bool:
    return importlib.util.find_spec("tabulate") is not None


def _plain(about: str, rows: list[dict[str, Any]]) -> str:
    heads = list(rows[0])
    widths = [max(len(head), *(len(row[head]) for row in rows)) for head in heads]
    lines = [heads, ["-" * width for width in widths], *([row[head] for head in heads] for row in rows)]
    table = ["| " + " | ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return f"{about}\n\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    main()
