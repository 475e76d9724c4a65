"""Time U-Flow's a-contrario test: what it takes of the host per input, and what is left of it beside a device.

    python tools/bench_uflow_test.py [--inputs 8] [--device-ms 20] [--batches 12]

First table, milliseconds of processor time per input of 512 x 512 (grids of 128, 64 and 32 cells, 84, 80 and 128
channels), least of three: log10 NFA of every cell, as the map ``nfa`` needs it, and only where something is found, as
the decision needs it. The energies are noise after its law; noise with a spot; and noise that a smooth factor makes
rough, of which much is found. Decisions are compared.

Second table: batches go through a device that is busy for so many milliseconds with each and leaves the host free (it
sleeps), and the host decides on every one of them. In turn, as in threads that the inference loop waits for; beside, as
it does on a GPU. ``calls`` is how long 1,000 small operations of torch take the thread that queues work, alone and
while the test runs in a thread: what Python's lock costs.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from scipy import ndimage

from hrbench._util.resources import methods_package
from hrbench.engine.device import device_name
from hrbench.engine.inference import DECIDING

methods_package()
from hrbench.methods import _nfa  # noqa: E402

SHAPES, CHANNELS = ((128, 128), (64, 64), (32, 32)), (84, 80, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=8, help="of a batch")
    parser.add_argument("--device-ms", type=float, default=20, help="per batch")
    parser.add_argument("--batches", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{device_name(torch.device('cpu'))}; ms per input\n")
    print("| energies   | everywhere | where found | share found | equal |")
    print("| ---------- | ---------- | ----------- | ----------- | ----- |")
    for kind in ("noise", "a spot", "rough"):
        energies = energies_of(kind, 2)
        every, found = (part(test(only), energies) for only in (False, True))
        decided = [scales(test(only), energies) < 0 for only in (False, True)]
        cells = [f"{every:.1f}", f"{found:.2f}", f"{float(decided[0].float().mean()):.3f}"]
        equal = "yes" if torch.equal(*decided) else "no"
        print(f"| {kind:<10} | {cells[0]:<10} | {cells[1]:<11} | {cells[2]:<11} | {equal:<5} |")
    print(f"\n{args.batches} batches of {args.inputs}, {args.device_ms:g} ms of the device each; ms per batch\n")
    print("| test        | energies   | device | test | in turn | beside | calls alone | calls beside |")
    print("| ----------- | ---------- | ------ | ---- | ------- | ------ | ----------- | ------------ |")
    for only in (False, True):
        for kind in ("noise", "a spot"):
            energies = energies_of(kind, args.inputs)
            work = partial(test(only).on_host, energies, CHANNELS)
            alone = seconds(work)
            turns = seconds(partial(in_turn, work, args.device_ms / 1e3, args.batches)) / args.batches
            both = seconds(partial(beside, work, args.device_ms / 1e3, args.batches)) / args.batches
            times = [args.device_ms / 1e3, alone, turns, both, seconds(small_calls), calls(work)]
            shown = [f"{1e3 * value:.0f}" for value in times]
            widths = (6, 4, 7, 6, 11, 12)
            cells = [value.ljust(width) for value, width in zip(shown, widths, strict=True)]
            print(f"| {'where found' if only else 'everywhere':<11} | {kind:<10} | {' | '.join(cells)} |", flush=True)


def test(only_found: bool) -> _nfa.TreeTest:
    return _nfa.TreeTest("tree-by-size", SHAPES, SHAPES[0], "nearest", only_found)


def energies_of(kind: str, inputs: int) -> list[torch.Tensor]:
    """Return the energies of a batch, per scale."""
    rng = np.random.default_rng(0)
    found = []
    for (height, width), channels in zip(SHAPES, CHANNELS, strict=True):
        energy = rng.chisquare(channels, (inputs, height, width)) / channels
        if kind == "a spot":
            energy[:, height // 2 : height // 2 + height // 16, width // 3 : width // 3 + width // 16] *= 3
        if kind == "rough":
            energy *= ndimage.gaussian_filter(rng.lognormal(0, 2, energy.shape), (0, 2, 2))
            energy /= energy.mean()
        found.append(torch.from_numpy(energy.astype(np.float32)))
    return found


def scales(test: _nfa.TreeTest, energies: list[torch.Tensor]) -> torch.Tensor:
    return test.joined(test.on_host(energies, CHANNELS))


def part(test: _nfa.TreeTest, energies: list[torch.Tensor]) -> float:
    """Return the milliseconds of processor time per input."""
    return 1e3 * seconds(partial(test.on_host, energies, CHANNELS), time.process_time) / len(energies[0])


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    work()
    taken = []
    for _ in range(3):
        started = clock()
        work()
        taken.append(clock() - started)
    return min(taken)


def in_turn(work: Callable[[], object], device: float, batches: int) -> None:
    for _ in range(batches):
        time.sleep(device)
        work()


def beside(work: Callable[[], object], device: float, batches: int) -> None:
    waiting: deque[Future[object]] = deque()
    with ThreadPoolExecutor(DECIDING) as threads:
        for _ in range(batches):
            time.sleep(device)
            waiting.append(threads.submit(work))
            while len(waiting) > DECIDING:
                waiting.popleft().result()


def small_calls() -> None:
    x = torch.ones(8, 8)
    for _ in range(1000):
        x = x * 1.0


def calls(work: Callable[[], object]) -> float:
    """Return the seconds of the calls while a thread works without end."""
    ended = False

    def go_on() -> None:
        while not ended:
            work()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(go_on)
        try:
            return seconds(small_calls)
        finally:
            ended = True


if __name__ == "__main__":
    main()
