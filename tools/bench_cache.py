"""Time a fit with and without kept features (hrbench/engine/feature_cache.py), and compare what comes out.

    python tools/bench_cache.py [--method l2bt] [--set teacher=vit_small_patch16_224] [--inputs 16] [--size 224]
        [--epochs 1 20] [--batch-size 4] [--device cpu]

Random images, random weights. Per number of epochs: seconds of the whole fit with features computed anew for each
batch, kept in memory, and kept in a file; the ratio of the first to each; the same for seconds of processor time, which
say more on a busy machine; and the largest relative difference between the losses and those of the fit without kept
features. In memory and in a file, losses and weights must agree to the last bit; the script fails where they do not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hrbench import create_method
from hrbench.data.sample import Sample
from hrbench.engine import feature_cache as features
from hrbench.engine.device import device_name, pick_device
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, seeded
from hrbench.engine.views import View

PLACES = {"anew": (0, 0), "memory": (1 << 40, 0), "file": (0, 1 << 40)}  # bytes of memory and disk
DEFAULTS: dict[str, dict[str, Any]] = {
    "l2bt": {"teacher": "vit_tiny_patch16_224"},
    "fastflow": {"backbone": "resnet18"},
    "uflow": {"backbone": "resnet18"},
}


class Recorded(Fit):
    """A fit that remembers the losses of its last stage."""

    losses: list[float]

    def train(self, normals: Any, loss: Callable[[Any], torch.Tensor], *args: Any, **options: Any) -> list[float]:
        """Run the fit loop."""
        self.losses = super().train(normals, loss, *args, **options)
        return self.losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=DEFAULTS, default="l2bt")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=NAME", help="text options of the method")
    parser.add_argument("--inputs", type=int, default=16, help="training images, one input each")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = pick_device(args.device)
    options = {**DEFAULTS[args.method], **dict(item.split("=", 1) for item in args.set), "weights": "random"}
    print(f"{args.method} {options}, {args.inputs} inputs of {args.size} x {args.size}, {device_name(device)}\n")
    print("| epochs | steps | features | seconds | ratio | processor | ratio | loss differs by |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        normals = images(Path(folder), args.inputs, args.size)
        for epochs in args.epochs:
            steps = epochs * -(-args.inputs // args.batch_size)
            chosen = {**options, "steps": steps, "batch_size": args.batch_size}
            found = {place: fit(place, args.method, chosen, normals, device, Path(folder)) for place in PLACES}
            plain = found["anew"]
            for place, (seconds, losses, state) in found.items():
                times = " | ".join(
                    f"{own:.1f} | {first / own:.1f}" for own, first in zip(seconds, plain[0], strict=True)
                )
                differ = max(abs(a - b) / abs(b) for a, b in zip(losses, plain[1], strict=True))
                print(f"| {epochs} | {steps} | {place} | {times} | {differ:.1e} |", flush=True)
                if place == "file":
                    other = found["memory"]
                    if losses != other[1] or any(not torch.equal(state[key], other[2][key]) for key in state):
                        raise SystemExit("features kept in memory and in a file gave different bits")


def images(folder: Path, count: int, size: int) -> ViewedNormals:
    """Write smooth noise as PNG; return it through a whole view."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(path.name, path, None, 0, "good", "train", "noise"))
    return ViewedNormals(samples, View.parse(f"whole:{size}"))


def fit(
    place: str, name: str, options: dict[str, Any], normals: ViewedNormals, device: torch.device, scratch: Path
) -> tuple[tuple[float, float], list[float], dict[str, torch.Tensor]]:
    """Return seconds (wall clock, processor), losses and what was learnt of one fit."""
    features.MEMORY_BYTES, features.DISK_BYTES = PLACES[place]
    features.FREE_BYTES = 0
    with seeded(0):
        method = create_method(name, **options).to(device)
        method.train()
        context = Recorded(method, held_out=normals, seed=0, device=device, scratch=scratch, label=place)
        started = time.perf_counter(), time.process_time()
        method.fit(normals, context)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started[0], time.process_time() - started[1]
        return seconds, context.losses, learnt_state(method)


if __name__ == "__main__":
    main()
