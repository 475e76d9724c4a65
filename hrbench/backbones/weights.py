"""Where the weights of a backbone come from: found, read without unpickling, matched to the model, named by digest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from hrbench.backbones.bundled import Bundled, bundled_models, find_bundled
from hrbench.errors import HrbenchError

__all__ = ["Source", "weights_folder"]

_SUFFIXES = (".safetensors", ".pth", ".pt")
_HUB_TIMEOUT_S = 5.0
_BESIDE = re.compile(r"(mask_token|decoder_.*)$|.*num_batches_tracked$")  # of what a network was pretrained with
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model and where its weights come from: what every extractor is built with."""

    model: str
    weights: str
    bundled: Bundled | None = None

    @staticmethod
    def of(model: str, weights: str) -> Source:
        """Return the source that an option `weights` names."""
        if weights != "bundled":
            return Source(model, weights)
        found = find_bundled(model)
        return Source(found.model, weights, found)

    @property
    def options(self) -> Mapping[str, Any]:
        """What the constructor is told beyond the model's name."""
        return self.bundled.options if self.bundled else {}

    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Return mean and standard deviation of the input's channels."""
        if self.bundled:
            return self.bundled.mean, self.bundled.std
        cfg = timm.get_pretrained_cfg(self.model)
        return (cfg.mean, cfg.std) if cfg else (_IMAGENET_MEAN, _IMAGENET_STD)

    def fill(self, network: nn.Module, rest: dict[str, Tensor] | None = None) -> str:
        """Load the weights into `network` and return their provenance; `rest` receives what it has no place for."""
        if self.weights == "random":
            return f"{self.model} random"
        if self.bundled:
            path, source = self.bundled.path, "bundled"
        elif self.weights == "pretrained":
            path, source = _find(self.model)
        else:
            path = Path(self.weights).expanduser()
            source = f"file:{path.name}"
            if not path.is_file():
                raise HrbenchError(
                    f"weights {self.weights!r}: no such file, and neither 'pretrained', 'bundled' nor 'random'"
                )
        given = _read(path)
        whole = None if self.bundled else self.model
        matched = _match(network, given, whole)
        if isinstance(matched, list):
            # Files of the original authors name things differently; timm knows how to convert them.
            with contextlib.suppress(Exception):
                inner = getattr(network, "model", network)
                convert = sys.modules[type(inner).__module__].checkpoint_filter_fn
                matched = _match(network, convert(dict(given), inner), whole)  # it takes keys out
        if isinstance(matched, list):
            shown = "; ".join(matched[:3]) + (f"; and {len(matched) - 3} more" if len(matched) > 3 else "")
            if self.bundled:
                raise HrbenchError(
                    f"the bundled {self.model} lacks what was asked for ({shown}); expected strides up to 16, "
                    "with the next coarser one where a method needs it"
                )
            raise HrbenchError(f"weights {str(path)!r} do not fit {self.model}: {shown}")
        network.load_state_dict(matched)
        if rest is not None:
            rest.update({key: value for key, value in given.items() if key not in matched})
        return f"{self.model} {source} sha256:{_digest(matched)}"


def weights_folder() -> Path:
    """Return the folder in which ``pretrained`` looks first: ``$HRBENCH_WEIGHTS`` or the user's cache."""
    named = os.environ.get("HRBENCH_WEIGHTS")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "hrbench" / "weights"


def _find(model: str) -> tuple[Path, str]:
    """Return the pretrained file of a model and where it was found, downloading it as a last resort."""
    folder = weights_folder()
    for suffix in _SUFFIXES:
        path = folder / f"{model}{suffix}"
        if path.is_file():
            return path, f"file:{path.name}"
    cfg = timm.get_pretrained_cfg(model)
    repo, _, revision = (cfg.hf_hub_id if cfg and cfg.hf_hub_id else "").partition("@")
    url = cfg.url if cfg and isinstance(cfg.url, str) else ""
    name = (cfg.hf_hub_filename if cfg else None) or "model.safetensors"
    if repo:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached), "hub"
    if url.endswith(_SUFFIXES):
        downloaded = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if downloaded.is_file():
            return downloaded, "hub"
    reason = "timm knows no pretrained weights for it"
    if repo:
        try:
            # One request without retries: hf_hub_download alone tries for half a minute before it gives up.
            huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repo, name, revision=revision or None), timeout=_HUB_TIMEOUT_S
            )
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision or None)), "hub"
        except Exception as error:  # whatever the hub's client raises, the remedy is the same
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    fetch = " or ".join(part for part in (f"{name} of https://huggingface.co/{repo}" if repo else "", url) if part)
    remedy = f"Fetch {fetch} and" if fetch else "If you have a state dict,"
    suffix = Path(name).suffix if repo else (Path(urlparse(url).path).suffix or ".safetensors")
    raise HrbenchError(
        f"no pretrained weights for {model} ({reason}). {remedy} put it at {folder / (model + suffix)} "
        f"(or set HRBENCH_WEIGHTS to another folder), or pass weights=PATH; "
        f"weights=bundled works without a download for {', '.join(bundled_models())}; "
        f"weights=random runs without them, for trying things out."
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling anything."""
    if path.suffix not in (*_SUFFIXES, ".bin"):
        raise HrbenchError(f"weights {str(path)!r}: expected a file ending in {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a bad file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # torch advises to unpickle
            reason = (
                "it is damaged, or holds other objects than tensors, which could run code and are never read; expected "
                "a state dict, such as safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors') writes"
            )
        raise HrbenchError(f"weights {str(path)!r}: not a readable state dict: {reason}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise HrbenchError(f"weights {str(path)!r}: holds no state dict (a mapping of names to tensors)")
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _match(network: nn.Module, given: Mapping[str, Tensor], whole: str | None) -> dict[str, Tensor] | list[str]:
    """Return the part of `given` that fills `network`, or what is wrong with it.

    A ``features_only`` network renames what it wraps (``blocks.0`` to ``blocks_0``, or a prefix ``model.``),
    so keys are compared with dots as underscores. What the network does not have is left out if the `whole` model has
    it (a head, later blocks), or if it is the decoder of a masked autoencoder; anything else is of another model.
    """
    flat = {_flat(key): value for key, value in given.items()}
    filled: dict[str, Tensor] = {}
    wrong: list[str] = []
    for key, own in network.state_dict().items():
        found = flat.get(_flat(key))
        if found is None:
            found = flat.get(_flat(key.removeprefix("model.")))
        if found is None:
            # Old files of batch norm lack this counter, which only training uses.
            if key.endswith("num_batches_tracked"):
                found = own
            else:
                wrong.append(f"no {key}")
                continue
        if found.shape != own.shape:
            wrong.append(f"{key} is {tuple(found.shape)}, expected {tuple(own.shape)}")
        elif found.is_floating_point() != own.is_floating_point() or found.is_complex():
            wrong.append(f"{key} is of type {_type(found)}, expected {_type(own)}")
        elif not bool(found.isfinite().all()):
            wrong.append(f"{key} holds {int((~found.isfinite()).sum()):,} NaN or infinite values")
        filled[key] = found
    if whole is not None and not wrong:
        wrong = [f"{whole} has no {key}" for key in _foreign(whole, given)]
    return wrong or filled


def _foreign(model: str, given: Mapping[str, Tensor]) -> list[str]:
    """Return the keys that the timm model has not."""
    with torch.device("meta"):
        names = {_flat(key) for key in timm.create_model(model, pretrained=False).state_dict()}
    return [key for key in given if _flat(key) not in names and not _BESIDE.match(key)]


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _digest(state: Mapping[str, Tensor]) -> str:
    """Return the first 16 hex digits of the SHA-256 over names and bytes, the same for any file format."""
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(key.encode())
        sha.update(state[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
