"""The backbones that come with the package: small, pretrained by this project on images made by formulas.

Each is one file of ``hrbench/weights``, named after its timm architecture, that describes itself in its header:
what timm must be told to build it, its input normalisation, its licence and how ``tools/pretrain_backbone.py`` made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors

from hrbench.errors import HrbenchError

__all__ = ["Bundled", "bundled_digest", "bundled_models", "find_bundled"]

_FOLDER = Path(__file__).resolve().parents[1] / "weights"


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
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def bundled_digest(names: Iterable[object]) -> str:
    """Return the SHA-256 over those bundled files that `names` (options of a method, say) name.

    Another release may bundle other files under the same names. Where none is named, as by a method whose backbone is
    no option, all of them count.
    """
    sha = hashlib.sha256()
    models = {name.partition(".")[0] for name in names if isinstance(name, str)}
    for model in sorted(models.intersection(bundled_models())) or bundled_models():
        sha.update(model.encode() + (_FOLDER / f"{model}.safetensors").read_bytes())
    return sha.hexdigest()


def find_bundled(model: str) -> Bundled:
    """Return the bundled backbone of a timm model; its tag, which names other weights, does not matter.

    Raises
    ------
    HrbenchError
        If there is none; the message lists those that are.
    """
    architecture = model.partition(".")[0]
    if architecture not in bundled_models():
        have = ", ".join(bundled_models()) or "none: this installation lacks hrbench/weights"
        raise HrbenchError(f"no bundled weights for {model}, expected one of: {have}")
    path = _FOLDER / f"{architecture}.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        origin: dict[str, str] = file.metadata()
    mean, std = json.loads(origin["mean"]), json.loads(origin["std"])
    return Bundled(architecture, path, json.loads(origin["options"]), (*mean,), (*std,), origin)
