"""Measure L2BT's blur in strips beside the same blur of the whole map at once: memory beyond the map, and time.

    python tools/bench_blur.py [--sides 2048 4096] [--device cpu] [--repeats 3]

Bytes per pixel are those of the peak above the map itself, the result (4 bytes) included; each in a process of its own.
Milliseconds are the medians of turns in one process: of processor time on a CPU, of wall-clock time on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import get_args

import torch

from hrbench._util.resources import methods_package
from hrbench.engine.device import device_name, peak_memory, pick_device, reset_peak_memory

methods_package()
from hrbench.methods import l2bt  # noqa: E402

WHOLE = 1 << 62  # a strip that holds every map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", type=int, default=[2048, 4096], help="of the square maps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(f"{device_name(device)}, torch {torch.__version__}\n")
    print("| map         | padding | whole B/px | strips B/px | whole ms | strips ms | equal |")
    print("| ----------- | ------- | ---------- | ----------- | -------- | --------- | ----- |")
    for side in args.sides:
        for padding in get_args(l2bt.Padding):
            ways = (WHOLE, l2bt._STRIP)
            memory = [f"{bytes_per_pixel(side, padding, strip, str(device)):.1f}" for strip in ways]
            map_ = torch.rand(side, side, device=device)
            whole, strips = (blurred(map_, padding, strip) for strip in ways)
            equal = "yes" if torch.equal(whole, strips) else "no"
            taken: list[list[float]] = [[], []]
            for _ in range(args.repeats):
                for times, strip in zip(taken, ways, strict=True):
                    times.append(milliseconds(partial(blurred, map_, padding, strip), device))
            cells = [f"{side} x {side}", padding, *memory, *(f"{statistics.median(t):.0f}" for t in taken), equal]
            widths = (11, 7, 10, 11, 8, 9, 5)
            print("| " + " | ".join(x.ljust(w) for x, w in zip(cells, widths, strict=True)) + " |", flush=True)


def blurred(map_: torch.Tensor, padding: l2bt.Padding, strip: int) -> torch.Tensor:
    """Blur in strips of so many pixels."""
    given, l2bt._STRIP = l2bt._STRIP, strip
    try:
        return l2bt.blur(map_, padding=padding)
    finally:
        l2bt._STRIP = given


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize(device)
    started = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize(device)
    return 1e3 * (clock() - started)


def bytes_per_pixel(side: int, padding: str, strip: int, device: str) -> float:
    """Measure the peak above the map in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_above, side, padding, strip, device).result()


def _above(side: int, padding: l2bt.Padding, strip: int, name: str) -> float:
    device = torch.device(name)
    torch.set_num_threads(1)
    blurred(torch.rand(256, 256, device=device), padding, strip)  # what is loaded once is there
    map_ = torch.rand(side, side, device=device)
    reset_peak_memory(device)
    before = peak_memory(device)
    blurred(map_, padding, strip)
    return (peak_memory(device) - before) * 2**20 / side**2


if __name__ == "__main__":
    main()
