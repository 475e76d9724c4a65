"""The backbones that come with the package: small, pretrained by this project on images made by formulas.

Each is one file of ``hrbench/weights``, named after its timm architecture and, behind a hyphen, its variant, that
describes itself in its header: what timm must be told to build it, its input normalisation, its licence and how
``tools/pretrain_backbone.py`` made it. The weights ``bundled-uncrowded`` of ``resnet18`` are
``resnet18-uncrowded.safetensors``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from hrbench.errors import HrbenchError

__all__ = ["Bundled", "bundled_digest", "bundled_models", "find_bundled", "is_bundled"]

_FOLDER = Path(__file__).resolve().parent / "weights"


@dataclasses.dataclass(frozen=True)
class Bundled:
    """A bundled backbone.

    Attributes
    ----------
    model : str
        timm architecture, without a tag.
    path : Path
        The safetensors file. Matrices are stored as float16, vectors as float32.
    options : mapping
        What its timm constructor is given, for example a smaller depth.
    mean, std : tuple of three float
        Input normalisation, of RGB in [0, 1].
    origin : mapping of str to str
        Everything the header says: licence, recipe, seed, steps, versions.
    """

    model: str
    path: Path
    options: Mapping[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: Mapping[str, str]


def bundled_models() -> list[str]:
    """Return the timm architectures for which ``weights="bundled"`` works."""
    return [model for model, weights in sorted(_files()) if weights == "bundled"]


def is_bundled(weights: str) -> bool:
    """Tell whether `weights` are ``bundled`` or, as ``bundled-uncrowded``, a variant of those."""
    return re.fullmatch(r"bundled(-\w+)?", weights) is not None


def bundled_digest(names: Iterable[object], weights: str) -> str:
    """Return the SHA-256 over the files of the bundled `weights` of models among `names` (options of a method, say).

    Another release may bundle other files under the same names. Where none is named, as by a method whose backbone is
    no option, all files of these weights count.
    """
    sha = hashlib.sha256()
    models = {name.partition(".")[0] for name in names if isinstance(name, str)}
    candidates = {model: path for (model, variant), path in _files().items() if variant == weights}
    for model in sorted(models.intersection(candidates) or candidates):
        sha.update(candidates[model].stem.encode() + candidates[model].read_bytes())
    return sha.hexdigest()


def find_bundled(model: str, weights: str) -> Bundled:
    """Return the bundled backbone of a timm model; its tag, which names other weights, does not matter.

    Raises
    ------
    HrbenchError
        If there is none; the message lists those that are.
    """
    architecture, files = model.partition(".")[0], _files()
    path = files.get((architecture, weights))
    if path is None:
        have = ", ".join(" ".join(key) for key in sorted(files)) or "none: this installation lacks hrbench/weights"
        raise HrbenchError(f"no {weights} weights for {model}, expected one of: {have}")
    with safetensors.safe_open(path, framework="pt") as file:
        origin: dict[str, str] = file.metadata()
    mean, std = json.loads(origin["mean"]), json.loads(origin["std"])
    return Bundled(architecture, path, json.loads(origin["options"]), (*mean,), (*std,), origin)


def _files() -> dict[tuple[str, str], Path]:
    """Return the files by model and weights."""
    parts = {path.stem.partition("-"): path for path in _FOLDER.glob("*.safetensors")}
    return {(model, f"bundled{hyphen}{variant}"): path for (model, hyphen, variant), path in parts.items()}
