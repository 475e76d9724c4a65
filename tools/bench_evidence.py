"""Measure how fast maps are counted into evidence: numpy in the host's memory beside torch where the map lies.

    python tools/bench_evidence.py                                # torch on the CPU, one thread and two
    python tools/bench_evidence.py --device cuda --output results/bench_evidence_cuda.md

Maps are exp(0.8 x) of a smooth Gaussian field, so that they have a heavy tail, masks some blobs of 1 % of the pixels,
decisions all pixels above 3. Both engines give the same bins, defect scores and decided pixels, or this ends with an
error. The mask's components and rims are found on the host in any case, and have a row of their own. The floor is
reading each score once. Megapixels per second are of wall-clock time, and of processor time, for other work on the
machine to matter less; the ratio is of the latter, but where the device is a GPU. All are medians of turns that
alternate. What travels is counted where it is sent, on a CPU too; MiB are the peak beside the map, of the process on a
CPU, each in a process of its own, and of the allocator on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from hrbench.engine import counting
from hrbench.engine.counting import count_pixels
from hrbench.engine.device import device_name, peak_memory, pick_device, reset_peak_memory
from hrbench.evidence import EvidenceSpec
from hrbench.evidence.histograms import KEY_SHIFT, check_map, image_score
from hrbench.evidence.tally import Counted, Places, count
from hrbench.protocol import ImageScoreRule

FLOOR, PLACES, NUMPY, TORCH, FETCHED = (
    "read every score once",
    "components and rims of the mask",
    "numpy on the host",
    "torch where the map is",
    "the map to the host, then numpy",
)
HEADS = ("map", "threads", "what", "Mpx/s", "Mpx/CPU s", "x numpy", "B/px that travel", "MiB beside the map")


@dataclass(frozen=True)
class Image:
    """One image: in the host's memory, and its map and decision on the device too."""

    scores: np.ndarray
    decision: np.ndarray
    mask: np.ndarray
    map_: Tensor
    decided: Tensor

    @staticmethod
    def of(side: int, device: torch.device) -> Image:
        """Make a square image."""
        rng = np.random.default_rng(0)
        field = ndimage.gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 3, truncate=2)
        scores = np.exp(0.8 * (field / field.std() + 0.05 * rng.standard_normal((side, side), dtype=np.float32)))
        mask = np.zeros((side, side), bool)
        for _ in range(25):
            top, left = rng.integers(0, side - side // 50, 2)
            mask[top : top + side // 50, left : left + side // 50] = True
        decision = scores > 3
        return Image(scores, decision, mask, torch.from_numpy(scores).to(device), torch.from_numpy(decision).to(device))


def by_numpy(scores: np.ndarray, decision: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[Counted, float]:
    """Count a map of the host, with the checks that belong to it."""
    checked = check_map(scores, None, "map")
    return count(checked, decision, groups), image_score(checked, ImageScoreRule("max"))


def by_torch(image: Image, groups: Sequence[np.ndarray]) -> tuple[Counted, float]:
    """Count a map where it lies."""
    found = count_pixels(image.map_, image.decided, np.concatenate(groups), shift=KEY_SHIFT)
    return Counted.of(found, groups), found.high


def ways(image: Image) -> dict[str, Callable[[], object]]:
    """Return what is timed."""
    places = Places.of(image.mask, EvidenceSpec())
    found: dict[str, Callable[[], object]] = {
        FLOOR: image.scores.max,
        PLACES: lambda: Places.of(image.mask, EvidenceSpec()),
        NUMPY: lambda: by_numpy(image.scores, image.decision, places.groups),
        TORCH: lambda: by_torch(image, places.groups),
    }
    if image.map_.device.type == "cuda":
        found[FETCHED] = lambda: by_numpy(image.map_.cpu().numpy(), image.decided.cpu().numpy(), places.groups)
    return found


def check_equal(image: Image) -> int:
    """Return the number of filled bins; end where the engines do not agree."""
    timed = ways(image)
    (own, low), (other, high) = timed[TORCH](), timed[NUMPY]()  # type: ignore[misc]
    pairs = [(own.normals.keys, other.normals.keys), (own.normals.cumulative, other.normals.cumulative)]
    pairs += [*zip(own.scores, other.scores, strict=True), *zip(own.decided, other.decided, strict=True)]
    facts = [(part.decisions, part.lossless, score) for part, score in ((own, low), (other, high))]
    if not all(np.array_equal(a, b) for a, b in pairs) or facts[0] != facts[1]:
        raise SystemExit("the engines do not agree")
    return int(own.normals.keys.size)


def travelled(image: Image) -> int:
    """Return the bytes that go to the device and come from it when it counts."""
    sizes: list[int] = []
    fetched, to_device = counting.fetched, counting.to_device

    def watched_fetched(*tensors: Tensor) -> list[Tensor]:
        sizes.extend(tensor.nbytes for tensor in tensors)
        return fetched(*tensors)

    def watched_to_device(tensor: Tensor, device: torch.device) -> Tensor:
        sizes.append(tensor.nbytes)
        return to_device(tensor, device)

    with mock.patch.multiple(counting, fetched=watched_fetched, to_device=watched_to_device):
        ways(image)[TORCH]()
    return sum(sizes)


def beside(side: int, device_text: str, what: str) -> float:
    """Return the MiB that counting takes beside the map; for a process of its own."""
    torch.set_num_threads(1)
    device = torch.device(device_text)
    ways(Image.of(64, device))[what]()  # what is loaded on first use
    image = Image.of(side, device)
    call = ways(image)[what]
    reset_peak_memory(device)
    before = peak_memory(device)
    call()
    return peak_memory(device) - before


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return how long a call takes with what it leaves the device to do, and the processor time of all threads."""
    began = (time.perf_counter(), time.process_time())
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def rows(side: int, threads: Sequence[int], repeats: int, device: torch.device) -> list[tuple[str, ...]]:
    """Measure maps of one size."""
    image = Image.of(side, device)
    bins = check_equal(image)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of glibc: what is freed does not stay with the process
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = {what: pool.submit(beside, side, str(device), what).result() for what in (NUMPY, TORCH)}
    pixels, defects = side * side, image.mask.mean()
    sent = {TORCH: travelled(image) / pixels, FETCHED: (image.map_.nbytes + image.decided.nbytes) / pixels}
    print(f"{side} x {side}: {bins} bins, {defects:.2%} defects, {image.decision.mean():.0%} decided", flush=True)
    found = []
    for number in threads:
        torch.set_num_threads(number)
        timed = ways(image)
        for call in timed.values():
            call()
        taken: dict[str, list[tuple[float, float]]] = {what: [] for what in timed}
        for _ in range(repeats):
            for what, call in timed.items():
                taken[what].append(seconds(call, device))
        middle = {
            what: [statistics.median(times) for times in zip(*pairs, strict=True)] for what, pairs in taken.items()
        }
        counts = 0 if device.type == "cuda" else 1  # which of the two is compared
        for what, times in middle.items():
            size = f"{sent[what]:.2f}" if what in sent else ""
            mib = f"{memory[what]:.0f}" if what in memory else ""
            rate = [f"{pixels / time_ / 1e6:.1f}" for time_ in times]
            ratio = f"{middle[NUMPY][counts] / times[counts]:.2f}"
            found.append((f"{side} x {side}", str(number), what, *rate, ratio, size, mib))
    return found


def main() -> None:
    """Measure, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where torch counts")
    parser.add_argument("--sides", nargs="+", type=int, default=[2048, 4096], help="of the square maps")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of torch; numpy counts with one")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    args = parser.parse_args()
    device = pick_device(args.device)
    table = [HEADS, *(row for side in args.sides for row in rows(side, args.threads, args.repeats, device))]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADS))]
    lines = ["| " + " | ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) + " |" for row in table]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    about = (
        f"{device_name(device)}, torch {torch.__version__}, numpy {np.__version__}, median of {args.repeats} turns. "
        f"A map that is fetched moves 4 B/px, and its decision 1 B/px."
    )
    text = about + "\n\n" + "\n".join(lines) + "\n"
    print(text)
    if args.output:
        told = __doc__.partition("\n\n")[2].partition("\n\n")[2]
        command = f"`python tools/bench_evidence.py --device {args.device}`"
        args.output.write_text(f"# Evidence counted where the maps are\n\n{command}: {text}\n{told}", encoding="utf-8")


if __name__ == "__main__":
    main()
