"""Time of the bridged models of anomalib in their presets `demo`: python tools/bench_anomalib.py [--device cuda]."""

from __future__ import annotations

import argparse
import time

import torch

from hrbench import create_method, list_methods
from hrbench.engine.training import Fit, learnt_state, seeded
from hrbench.engine.views import View
from hrbench.registry import all_options, load_method
from hrbench.testing import StackedNormals

INPUTS = 8


def measure(name: str, device: torch.device) -> str:
    """Return a row of a table in Markdown."""
    cls = load_method(name)
    preset = cls.presets["demo"]
    # On a CPU, with one thread, that of this process: others do not count.
    now = time.process_time if device.type == "cpu" else time.perf_counter
    trained = "steps" in all_options(cls, preset.options)
    with seeded(0):
        method = create_method(name, preset="demo", **({"steps": 2} if trained else {})).to(device)
        normals = StackedNormals(torch.rand(INPUTS, 3, *View.parse(preset.view).tile))
        method.train()
        began = now()
        method.fit(normals, Fit(method, held_out=normals, seed=0, device=device))
        fit = now() - began
        method.eval()
        batch = normals.inputs[:4].to(device)
        with torch.no_grad():
            method.predict(batch[:1])
            began = now()
            method.predict(batch).maps["anomaly"].cpu()
            predict = (now() - began) / len(batch)
    learnt = sum(value.nbytes for value in learnt_state(method).values()) / 2**20
    unit = f"{fit / 2:.2f} s a step of {preset.options['batch_size']}" if trained else f"{fit / INPUTS:.2f} s an input"
    return f"| `{name}` | {preset.view} | {unit} | {predict:.2f} s | {learnt:.0f} MB |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--methods", nargs="+", default=[name for name in list_methods() if name.startswith("anomalib.")]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | inputs | fit | predict, per input | learnt |\n|---|---|---|---|---|")
    for chosen in options.methods:
        print(measure(chosen, torch.device(options.device)), flush=True)
