"""Pretrain the bundled backbones on images made by formulas alone.

First the convolutional trunk (task: from which canvas is this piece? and answer in directions that fill the space),
then a small vision transformer that learns to say what the trunk says:

    python tools/pretrain_backbone.py trunk --folder work/trunk      # makes resnet18.safetensors
    python tools/pretrain_backbone.py tokens --folder work/tokens    # makes vit_tiny_patch16_224.safetensors

Each can be killed and started again with the same command: it goes on from its last checkpoint and ends with the same
weights (same machine, same number of threads). The folder then holds the weights, ``curve.jsonl``, a plot of it and the
checkpoint. ``--smoke`` runs the whole way in seconds; ``--probe DATASET`` follows the features' worth on a dataset that
`hrbench` reads: a measurement, which never reaches the training. Copy the ``.safetensors`` into ``hrbench/weights`` to
bundle it.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the pictures' bytes must not depend on it

import numpy as np
import torch
from pretrain.canvases import VERSION, canvases
from pretrain.curve import plot
from pretrain.distil import distil
from pretrain.export import export
from pretrain.pretext import normalised, train
from pretrain.probe import probe_all
from pretrain.recipe import Distillation, Recipe, Training
from torch import Tensor, nn

from hrbench.backbones import load_pyramid
from hrbench.data import load_dataset

SMOKE = {"canvases": 6, "canvas": 96, "steps": 6, "batch": 4}


def pictures(recipe: Training, folder: Path) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], str]:
    """Return the canvases and their digest; they are drawn once and kept beside the folder."""
    stem = f"canvases-v{VERSION}-{recipe.seed}-{recipe.canvases}x{recipe.canvas}"
    path, note = folder.parent / f"{stem}.npy", folder.parent / f"{stem}.sha256"
    if path.is_file() and note.is_file():
        return np.load(path), note.read_text().strip()
    drawn, digest = canvases(recipe.seed, range(recipe.canvases), recipe.canvas)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, drawn)
    note.write_text(digest + "\n")
    return drawn, digest


def prober(roots: list[Path], levels: Callable[[nn.Module, Tensor], list[Tensor]]) -> Any:
    """Return a function that measures a network on datasets: mean over the categories of each."""
    sets = [load_dataset("folder", root) for root in roots]

    def measure(network: nn.Module) -> dict[str, float]:
        device = next(network.parameters()).device
        found: dict[str, float] = {}
        for root, dataset in zip(roots, sets, strict=True):
            result = probe_all(
                lambda x: [m.cpu() for m in levels(network, normalised(x.to(device)))], dataset.categories
            )
            for name in sorted({key.rpartition("/")[2] for key in result}):
                found[f"{root.name}_{name}"] = float(np.mean([v for k, v in result.items() if k.endswith("/" + name)]))
        return found

    return measure if sets else None


def tokens_as_maps(network: Any, images: Tensor) -> list[Tensor]:
    """Return the last block's tokens as one map."""
    found: list[Tensor] = network.forward_intermediates(
        images, indices=[len(network.blocks) - 1], norm=True, output_fmt="NCHW", intermediates_only=True
    )
    return found


def changed(recipe: Any, settings: list[str]) -> Any:
    """Return the recipe with ``key=value`` settings."""
    known = {field.name for field in dataclasses.fields(recipe)}
    values = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in known:
            sys.exit(f"--set {setting}: unknown, expected one of {', '.join(sorted(known))}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        values[key] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(recipe, **values)


def main(arguments: list[str] | None = None) -> None:
    """Pretrain one backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("trunk", "tokens"))
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoint, curve and weights")
    parser.add_argument("--trunk", default="bundled", help="tokens: weights of the trunk (%(default)s)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the recipe (tools/pretrain/recipe.py)"
    )
    parser.add_argument(
        "--probe", nargs="*", default=[], type=Path, metavar="DATASET", help="folders in MVTec AD's layout"
    )
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--stop", type=int, help="leave after this many steps; the next start goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--start", type=Path, help="trunk's checkpoint or tokens' weights that are the first ones")
    parser.add_argument("--smoke", action="store_true", help="a tiny run of the whole way")
    options = parser.parse_args(arguments)

    recipe: Any = Recipe() if options.kind == "trunk" else Distillation()
    if options.smoke:
        recipe = dataclasses.replace(recipe, **SMOKE, crop=64 if options.kind == "tokens" else 32)
    by_formula = recipe.stem
    recipe = changed(recipe, options.set)
    if recipe.stem not in (by_formula, "random"):
        sys.exit(f"--set stem={recipe.stem}: unknown, expected {by_formula} or random")
    drawn, digest = pictures(recipe, options.folder)
    common: dict[str, Any] = {"device": torch.device(options.device), "every": options.every, "stop": options.stop}
    constructor: dict[str, Any] = {}
    if options.start is not None:
        recipe = dataclasses.replace(recipe, start=hashlib.sha256(options.start.read_bytes()).hexdigest()[:16])
        common["start"] = options.start
    if options.kind == "trunk":
        probe = prober(options.probe, lambda net, x: list(net(x))[:2])
        network = train(drawn, recipe, options.folder, probe=probe, **common).network
        made_by = "naming the canvas of a crop in uncrowded directions (tools/pretrain_backbone.py trunk)"
    else:
        teacher = load_pyramid("resnet18", options.trunk, (1, 2, 3))
        probe = prober(options.probe, tokens_as_maps)
        network = distil(drawn, teacher, recipe, options.folder, probe=probe, **common).network
        constructor = {"depth": recipe.depth}
        made_by = f"distillation of {teacher.provenance} (tools/pretrain_backbone.py tokens)"
    plot([options.folder / "curve.jsonl"], options.folder / "curve.svg")
    if options.stop is None or options.stop >= recipe.steps:
        path = options.folder / f"{recipe.model}.safetensors"
        export(network, path, model=recipe.model, options=constructor, recipe=recipe, canvases=digest, made_by=made_by)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
