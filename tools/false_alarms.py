"""Measure the false alarms of U-Flow's tests on normal images, and what they find, on a dataset of yours.

    python tools/false_alarms.py ROOT [--dataset folder] [--categories NAME ...] [--preset native] [--view VIEW]
        [--set OPTION=VALUE ...] [--tests NAME ...] [--recalibrate NAME ...]

Fits once per category, as ``hrbench run`` does, and then decides with every test and recalibration. False alarms are
the connected regions (8 neighbours) that are predicted in the normal test images, which neither fit nor recalibration
has seen. IoU is pooled over all test images; found is the share of the defects with at least one predicted pixel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from skimage.measure import label

from hrbench._util.resources import methods_package
from hrbench.data import load_dataset
from hrbench.data.sample import Category, sample_mask
from hrbench.engine.inference import predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import View
from hrbench.method import Method
from hrbench.registry import create_method
from hrbench.runs.job import make_job, split_normals

methods_package()
from hrbench.methods._nfa import NfaTest  # noqa: E402

RECALIBRATIONS = ("none", "scale", "channel", "law")


def context_of(category: Category, method: Method, view: View, device: torch.device) -> tuple[ViewedNormals, Fit]:
    """Return the images to fit on, and the context that has those held out."""
    fit, held_out = (ViewedNormals(samples, view) for samples in split_normals(category))
    return fit, Fit(method, held_out=held_out, seed=0, device=device, label=category.name)


def fitted(category: Category, options: dict[str, Any], view: View, device: torch.device) -> dict[str, torch.Tensor]:
    """Return what U-Flow learns, without recalibration."""
    with seeded(0):
        method = create_method("uflow", **{**options, "recalibrate": "none"}).to(device).train()
        method.fit(*context_of(category, method, view, device))
    return learnt_state(method)


def measure(
    category: Category, options: dict[str, Any], state: dict[str, torch.Tensor], view: View, device: torch.device
) -> tuple[float, float, float, float]:
    """Return false alarms per normal image, share of normal images with any, pooled IoU, share of defects found."""
    with seeded(0):
        method: Any = create_method("uflow", **options).to(device).eval()
        load_learnt_state(method, state)
        if options["recalibrate"] != "none":
            method.recalibrate(context_of(category, method, view, device)[1])
    alarms: list[int] = []
    found: list[bool] = []
    both = either = 0
    for item in predict(method, category.test, view, device):
        assert item.decision is not None
        predicted = item.decision.cpu().numpy()
        mask = sample_mask(item.sample, predicted.shape)
        if mask is None:
            alarms.append(int(label(predicted, connectivity=2).max()))
            mask = np.zeros_like(predicted)
        both, either = both + int((predicted & mask).sum()), either + int((predicted | mask).sum())
        components = label(mask, connectivity=2)
        found += [bool(predicted[components == k].any()) for k in range(1, int(components.max()) + 1)]
    return float(np.mean(alarms)), float(np.mean(np.array(alarms) > 0)), both / max(1, either), float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--preset", default="native")
    parser.add_argument("--view")
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--tests", nargs="+", default=get_args(NfaTest), choices=get_args(NfaTest))
    parser.add_argument("--recalibrate", nargs="+", default=RECALIBRATIONS, choices=RECALIBRATIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    from hrbench.commands import _options  # the command line's own reading of OPTION=VALUE

    given = _options(arguments.set, None, ["uflow"])["uflow"]
    print("| category | test | recalibrate | false alarms per normal image | with any | IoU | found |")
    print("|---|---|---|---|---|---|---|")
    for category in load_dataset(arguments.dataset, arguments.root, arguments.categories).categories:
        job = make_job(category, "uflow", preset=arguments.preset, view=arguments.view, options=given)
        device = torch.device(arguments.device)
        state = fitted(category, dict(job.options), job.view, device)
        for test in arguments.tests:
            for how in arguments.recalibrate:
                options = {**job.options, "test": test, "recalibrate": how}
                numbers = measure(category, options, state, job.view, device)
                print(
                    "| {} | `{}` | `{}` | {:.2f} | {:.0%} | {:.3f} | {:.0%} |".format(
                        category.name, test, how, *numbers
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
