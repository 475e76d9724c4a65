"""Time FastFlow's training step and inference beside anomalib's implementation, in one run.

    python tools/bench_fastflow.py [--batch 8] [--size 256] [--runs 11] [--threads 1] [--device cpu]

Both: ResNet-18 with random weights, strides 4, 8 and 16, eight 3x3 steps per scale, an affine layer norm per scale. A
training step is the loss, its gradients and one step of Adam; inference ends with the anomaly map at the input's size.
The two alternate; medians. anomalib is optional: ``pip install anomalib`` (its FastFlow needs FrEIA and omegaconf).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
import types
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import torch

from hrbench.registry import create_method


def anomalib_fastflow(size: int) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]] | str:
    """Return anomalib's model and loss, or why there is none.

    Only its FastFlow is loaded, into empty packages: all of anomalib brings in a training framework and much more,
    none of which runs in a step.
    """
    spec = importlib.util.find_spec("anomalib")
    if spec is None or not spec.submodule_search_locations:
        return "anomalib is not installed (pip install anomalib)"
    root = spec.submodule_search_locations[0]
    for name in ("", ".models", ".models.image", ".models.image.fastflow", ".models.components"):
        package = types.ModuleType(f"anomalib{name}")
        package.__path__ = [root + name.replace(".", "/")]
        sys.modules[package.__name__] = package
    data = types.ModuleType("anomalib.data")
    vars(data)["InferenceBatch"] = namedtuple("InferenceBatch", ["pred_score", "anomaly_map"])
    sys.modules[data.__name__] = data
    try:
        model = importlib.import_module("anomalib.models.image.fastflow.torch_model")
        loss = importlib.import_module("anomalib.models.image.fastflow.loss")
    except ImportError as error:
        return f"anomalib's FastFlow cannot be imported: {error}"
    made = model.FastflowModel((size, size), "resnet18", pre_trained=False, flow_steps=8, conv3x3_only=True)
    return made, loss.FastflowLoss()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    batch = torch.rand(arguments.batch, 3, arguments.size, arguments.size, device=device)

    options: dict[str, Any] = {"weights": "random", "input_size": arguments.size}
    ours = create_method("fastflow", preset="paper", **options).to(device)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "hrbench": (
            training(ours, lambda: ours.loss(ours.features(batch))),
            inference(ours, lambda: ours.predict(batch)),
        )
    }
    found = anomalib_fastflow(arguments.size)
    if isinstance(found, str):
        print(f"{found}: hrbench alone")
    else:
        theirs, loss = found
        theirs.to(device)
        trained = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (ours, theirs)]
        assert trained[0] == trained[1], f"the two differ: {trained} trainable parameters"
        ways["anomalib"] = (
            training(theirs, lambda: loss(*theirs(batch))),
            inference(theirs, lambda: theirs(batch)),
        )
    print(f"batch {arguments.batch}, {arguments.size}x{arguments.size}, {device}, threads {arguments.threads}, medians")
    for what, name in enumerate(("training step", "inference")):
        times: dict[str, list[float]] = {way: [] for way in ways}
        for way in ways:
            ways[way][what]()  # warm-up
        for _ in range(arguments.runs):
            for way in ways:
                times[way].append(seconds(ways[way][what], device))
        medians = {way: 1e3 * statistics.median(values) for way, values in times.items()}
        shown = ", ".join(f"{way} {median:.1f} ms" for way, median in medians.items())
        ratio = f", anomalib / hrbench {medians['anomalib'] / medians['hrbench']:.2f}" if "anomalib" in medians else ""
        print(f"{name}: {shown}{ratio}", flush=True)


def training(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return one training step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-5)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()

    return step


def inference(model: torch.nn.Module, predict: Callable[[], object]) -> Callable[[], object]:
    """Return one prediction without gradients."""

    def run() -> object:
        model.eval()
        with torch.no_grad():
            return predict()

    return run


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes: on the CPU its own time, which other programs do not stretch."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


if __name__ == "__main__":
    main()
