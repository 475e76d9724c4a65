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
    return [stem for stem in _files() if "-" not in stem]


def is_bundled(weights: str) -> bool:
    """Tell whether `weights` are ``bundled`` or, as ``bundled-uncrowded``, a variant of those."""
    return re.fullmatch(r"bundled(-\w+)?", weights) is not None


def bundled_digest(names: Iterable[object], weights: str = "bundled") -> str:
    """Return the SHA-256 over those bundled files of `weights` that `names` (options of a method, say) name.

    Another release may bundle other files under the same names.
    """
    sha = hashlib.sha256()
    wanted = {_stem(name, weights) for name in names if isinstance(name, str)}
    for stem, path in _files().items():
        if stem in wanted:
            sha.update(stem.encode() + path.read_bytes())
    return sha.hexdigest()


def find_bundled(model: str, weights: str = "bundled") -> Bundled:
    """Return the bundled backbone of a timm model; its tag, which names other weights, does not matter.

    Raises
    ------
    HrbenchError
        If there is none; the message lists those that are.
    """
    files = _files()
    path = files.get(_stem(model, weights))
    if path is None:
        have = ", ".join("{} bundled{}{}".format(*stem.partition("-")) for stem in files)
        raise HrbenchError(
            f"no {weights} weights for {model}, expected one of: "
            f"{have or 'none: this installation lacks hrbench/weights'}"
        )
    with safetensors.safe_open(path, framework="pt") as file:
        origin: dict[str, str] = file.metadata()
    mean, std = json.loads(origin["mean"]), json.loads(origin["std"])
    return Bundled(origin["model"], path, json.loads(origin["options"]), (*mean,), (*std,), origin)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"), key=lambda path: path.stem)}


def _stem(model: str, weights: str) -> str:
    return model.partition(".")[0] + weights.removeprefix("bundled")
