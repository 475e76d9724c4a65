"""Write a trained backbone as the file that the package carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from hrbench._util.files import atomic

from .canvases import VERSION
from .pretext import MEAN, STD

__all__ = ["export"]


def export(
    network: nn.Module, path: Path, *, model: str, options: Mapping[str, Any], recipe: Any, canvases: str, made_by: str
) -> None:
    """Write the network's weights: matrices as float16, vectors as float32, counters not at all.

    Parameters
    ----------
    network : Module
    path : Path
    model, options : str, mapping
        What timm builds the network from.
    recipe : dataclass
        What it was trained by.
    canvases : str
        Digest of the pictures.
    made_by : str
        The task, in words.
    """
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        matrix = value.squeeze().ndim > 1
        state[key] = value.detach().cpu().to(torch.float16 if matrix else torch.float32).contiguous()
        if not state[key].isfinite().all():
            raise ValueError(f"{key} does not fit {state[key].dtype}")
    header = {
        "model": model,
        "options": json.dumps(dict(options)),
        "mean": json.dumps([MEAN] * 3),
        "std": json.dumps([STD] * 3),
        "licence": "Apache-2.0",
        "made_by": made_by,
        "images": "made by formulas alone (tools/pretrain); no photographs, no other network's weights",
        "formulas_version": str(VERSION),
        "canvases_sha256": canvases,
        "seed": str(recipe.seed),
        "steps": str(recipe.steps),
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    with atomic(path) as temporary:
        safetensors.torch.save_file(state, temporary, header)
