"""Time the fit loop against a bare one, and count how often the host waits for the device.

    python tools/bench_fit.py [--images 4] [--size 2048] [--steps 40] [--threads 2] [--repeats 3] [--device cpu]
        [--output results/bench_fit.md]

FastFlow in its demo preset on PNG files that lie in the system's cache. *bare*: the same module, optimiser and batches,
which are decoded before, and nothing of hrbench around. *before*: the loop of hrbench as it was, each loss read at once
and each batch loaded when it is asked for. *now*: the loop as it is. They take turns; of each the median. Seconds of
processor time say more on a busy machine. The losses of all three must be the same bits on a CPU; else it fails.

The waits are counted on a device that only says it is a GPU (`hrbench._util.fake_cuda`): how many more a fit has that
is twice as long, by method, with each loss read at once and now. A checkpoint, every 30 seconds, waits too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrbench import create_method
from hrbench._util.fake_cuda import fake_cuda
from hrbench.data.sample import Sample
from hrbench.engine import training
from hrbench.engine.device import device_name, device_seconds, pick_device
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, mix, seeded
from hrbench.engine.views import View, to_unit
from hrbench.registry import find_preset, load_method

RESNET = {"weights": "random", "backbone": "resnet10t", "strides": (4, 8)}
FLOW = {**RESNET, "flow_steps": 2, "batch_size": 2}
VIT = {"weights": "random", "backbone": "test_vit", "decoder_width": 32, "decoder_heads": 4, "decoder_depth": 2}
TEACHERS = {"weights": "random", "teacher": "resnet10t", "second_teacher": "test_resnet", "strides": (4, 8)}
L2BT = {"weights": "random", "teacher": "test_vit", "blocks": (0, 1), "batch_size": 2}
COUNTED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {  # method, options, and those that are the steps
    "fastflow": ("fastflow", FLOW, ("steps",)),
    "uflow": ("uflow", FLOW, ("steps",)),
    "l2bt": ("l2bt", L2BT, ("steps",)),
    "rstpm, `mixture`": (
        "rstpm",
        {**TEACHERS, "width": 4, "batch_size": 2, "discriminator_batch_size": 2},
        ("steps", "discriminator_steps"),
    ),
    "isstad, `tiny`": (
        "isstad",
        {**VIT, "mae_depth": 1, "batch_size": 2, "mae_batch_size": 2, "corruption": "tiny"},
        ("steps", "mae_steps"),
    ),
}


class Took(NamedTuple):
    """What the steps of one fit took."""

    seconds: float
    processor: float
    losses: list[float]


class Timed(Fit):
    """A fit that remembers what its last stage took, its number of stages, and keeps no checkpoint."""

    took: Took
    stages = 0

    def train(self, normals: Any, loss: Callable[[Any], Tensor], *args: Any, **options: Any) -> list[float]:
        """Run the fit loop."""
        self.stages += 1
        with clock(self.device) as passed:
            losses = super().train(normals, loss, *args, **options)
        self.took = Took(*passed, losses)
        return losses


@contextmanager
def clock(device: torch.device) -> Iterator[list[float]]:
    """Fill a list with the seconds that a block took, by the wall's clock and of the processor."""
    passed: list[float] = []
    began = device_seconds(device), time.process_time()
    yield passed
    passed += [device_seconds(device) - began[0], time.process_time() - began[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[4], help="several: a table each")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    lines = [
        "# The fit loop, and how often it waits",
        "",
        f"`python tools/bench_fit.py {' '.join(sys.argv[1:])}`, commit {commit.stdout.strip()}: {device_name(device)}, "
        f"torch {torch.__version__}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores before it began",
        "",
        f"FastFlow, demo preset, {args.steps} steps; PNG files of {args.size} x {args.size}; medians of {args.repeats}",
        "",
        "| images | loop | steps/s | of the bare loop | processor s per step |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for images in args.images:
            samples = written(Path(folder), images, args.size)
            lines += [f"| {images} | {row} |" for row in timed(samples, args.steps, args.repeats, device)]
        few = written(Path(folder), 2, 128)
        lines += ["", "Waits of the host for the device per step, on a device that only says it is a GPU:", ""]
        lines += ["| method | stages | each loss read at once | now |", "|---|---|---|---|"]
        lines += [f"| {name} | {row} |" for name in COUNTED for row in [counted(few, *COUNTED[name])]]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


def written(folder: Path, count: int, size: int) -> list[Sample]:
    """Write smooth noise as PNG."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        path = folder / f"{size}-{number:04d}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path, compress_level=1)
        samples.append(Sample(path.name, path, None, 0, "good", "train", "noise"))
    return samples


def timed(samples: Sequence[Sample], steps: int, repeats: int, device: torch.device) -> list[str]:
    """Return a row for each loop."""
    preset = find_preset(load_method("fastflow"), "fastflow", "demo")
    view, options = View.parse(preset.view), {**preset.options, "steps": steps}
    loops: dict[str, Callable[[], Took]] = {
        "bare": lambda: bare(samples, view, options, device),
        "before": lambda: as_it_was(samples, view, options, device),
        "now": lambda: suite(samples, view, options, device),
    }
    found: dict[str, list[Took]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, loop in loops.items():
            found[name].append(loop())
    if device.type == "cpu" and len({tuple(took.losses) for every in found.values() for took in every}) > 1:
        raise SystemExit("the loops gave different losses")
    rate = {name: steps / statistics.median(took.seconds for took in every) for name, every in found.items()}
    spent = {name: statistics.median(took.processor for took in every) / steps for name, every in found.items()}
    return [f"{name} | {rate[name]:.2f} | {rate[name] / rate['bare']:.2f} | {spent[name]:.3f}" for name in loops]


def suite(samples: Sequence[Sample], view: View, options: dict[str, Any], device: torch.device) -> Took:
    """Fit as a job does."""
    with seeded(0):
        method = create_method("fastflow", **options).to(device).train()
        context = Timed(method, held_out=None, seed=0, device=device)
        method.fit(ViewedNormals(samples, view), context)
    return context.took


def as_it_was(samples: Sequence[Sample], view: View, options: dict[str, Any], device: torch.device) -> Took:
    """Fit with each loss read at once and each batch loaded when it is asked for."""

    def inline(self: ViewedNormals, order: Any, *, workers: int = 1, pinned: bool = False) -> Iterator[Tensor]:
        del workers, pinned
        return (self._stack(chosen) for chosen in order)

    with mock.patch.object(ViewedNormals, "loaded", inline), mock.patch.object(training, "LATE_STEPS", 1):
        return suite(samples, view, options, device)


def bare(samples: Sequence[Sample], view: View, options: dict[str, Any], device: torch.device) -> Took:
    """Take the same steps on batches that are decoded, with nothing around them."""
    normals, batch_size, steps = ViewedNormals(samples, view), options["batch_size"], options["steps"]
    if steps * batch_size > len(normals):
        raise SystemExit(f"{steps} steps are several epochs, on kept features; expected fewer, or more images")
    with seeded(0):
        method = create_method("fastflow", **options).to(device).train()
        # What comes before the steps is the method's own; then the loop's first stage, by its seed.
        with mock.patch.object(Fit, "train", return_value=[]):
            method.fit(normals, Fit(method, held_out=None, seed=0, device=device))
        order = normals.order(batch_size, steps=steps, seed=0)
        batches = [to_unit(batch, device) for batch in normals.loaded(order)]
        optimizer = torch.optim.Adam(
            [p for p in method.parameters() if p.requires_grad],
            lr=method._lr,
            weight_decay=method._weight_decay,
            fused=device.type == "cuda" or None,
        )
        losses = []
        with clock(device) as passed:
            for step, batch in enumerate(batches):
                torch.manual_seed(mix(0, step))
                optimizer.zero_grad()
                loss = method.loss(method.features(batch))
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        return Took(*passed, torch.stack(losses).tolist())


def counted(samples: Sequence[Sample], name: str, options: dict[str, Any], lengths: Sequence[str]) -> str:
    """Return the stages of a fit, and the waits per step with each loss read at once and now."""
    waits = []
    for late, steps in ((1, 2), (training.LATE_STEPS, training.LATE_STEPS)):  # and as many again
        found = []
        for more in (1, 2):
            with mock.patch.object(training, "LATE_STEPS", late), fake_cuda() as log, seeded(0):
                device = torch.device("cuda")
                method = create_method(name, **options, **dict.fromkeys(lengths, more * steps)).to(device).train()
                context = Timed(method, held_out=None, seed=0, device=device)
                log.clear()
                method.fit(ViewedNormals(samples, View.parse("tiled:64:16")), context)
                found.append(len(log.waits))
        waits.append((found[1] - found[0]) / steps / context.stages)
    return " | ".join([str(context.stages), *(f"{value:.3f}" for value in waits)])


if __name__ == "__main__":
    main()
