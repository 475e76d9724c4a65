"""Flows trained with FrEIA (github.com/vislearn/FrEIA), read into :class:`FlowStep`.

A graph of FrEIA's ``AllInOneBlock`` names its tensors ``module_list.N.global_scale`` and so on, N in the order of
computation; a training framework puts its own prefixes before. Hard permutations are kept as dense 1x1 convolutions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hrbench.backbones import FeaturePyramid, PatchTokens
from hrbench.errors import HrbenchError

from ._flow import FlowStep

__all__ = ["load_freia"]

log = logging.getLogger("hrbench")

_KEY = re.compile(r"(?P<prefix>.*?)module_list\.(?P<number>\d+)\.(?P<name>.+)")
_NAMES = {
    "global_scale": "scale",
    "global_offset": "offset",
    **{f"subnet.{layer}.{kind}": f"subnet.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")},
}


def load_freia(
    path: Path,
    steps: Sequence[nn.Module],
    norms: Sequence[nn.Module],
    extractors: Sequence[FeaturePyramid | PatchTokens],
) -> None:
    """Fill flow steps, and affine layer norms if there are any, from a checkpoint.

    A flow is worth nothing on other features than it was trained on: weights of extractors in the file must be those
    that are loaded. They are not taken from there, since a backbone is rebuilt from its name and source, not saved.

    Parameters
    ----------
    path : Path
        A state dict, or a mapping that holds one as ``state_dict`` (Lightning's); never unpickled.
    steps : sequence of FlowStep
        In the order of computation.
    norms : sequence of Module
        Finest first. Those with a weight per channel and position are filled from the tensors of that shape; others
        are left as they are.
    extractors : sequence of FeaturePyramid or PatchTokens
        Compared with the tensors of the same names, below any prefix; a file without any is warned of.

    Raises
    ------
    HrbenchError
        If the file cannot be read or does not fit.
    """
    state = _read(path)
    for extractor in extractors:
        _check_extractor(extractor, state, path)
    blocks: dict[tuple[str, int], dict[str, Tensor]] = {}
    for key, value in state.items():
        if found := _KEY.fullmatch(key):
            blocks.setdefault((found["prefix"], int(found["number"])), {})[found["name"]] = value
    # Splits and upsamplers are modules too; only steps have a subnet.
    found_steps = {where: block for where, block in blocks.items() if any(n.startswith("subnet.") for n in block)}
    prefixes = sorted({prefix for prefix, _ in found_steps})
    if len(found_steps) != len(steps) or len(prefixes) > 1:
        where = f" below {' and '.join(map(repr, prefixes))}" if prefixes else ""
        raise HrbenchError(
            f"checkpoint {str(path)!r}: {len(found_steps)} flow steps (module_list.N.subnet){where}, "
            f"expected {len(steps)} in one graph"
        )
    for (prefix, number), step in zip(sorted(found_steps), steps, strict=True):
        where = f"{prefix}module_list.{number}"
        assert isinstance(step, FlowStep)
        _fill_step(step, found_steps[prefix, number], f"checkpoint {str(path)!r}: {where}")
    _fill_norms([norm for norm in norms if isinstance(norm, nn.LayerNorm)], state, path)


def _check_extractor(extractor: FeaturePyramid | PatchTokens, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise an error if the file holds an extractor's tensors, by name and shape, but other values."""
    theirs = {_flat(key): value for key, value in state.items() if value.is_floating_point()}
    network = extractor.network.state_dict().items()
    ours = {_flat(key.removeprefix("model.")): value for key, value in network if value.is_floating_point()}
    shared: dict[str, list[str]] = {}  # by prefix; of one that is not the network's own, few names fit
    for name, value in ours.items():
        for key in theirs:
            if key.endswith(name) and theirs[key].shape == value.shape:
                shared.setdefault(key.removesuffix(name), []).append(name)
    if not shared:
        log.warning(
            "checkpoint %r holds no weights of %s: whether its flow was trained on them is not known",
            str(path), extractor.provenance,
        )  # fmt: skip
        return
    most = max(map(len, shared.values()))
    candidates = [(prefix, names) for prefix, names in shared.items() if len(names) == most]
    wrong = [[name for name in names if not _equal(ours[name], theirs[prefix + name])] for prefix, names in candidates]
    if all(wrong):  # two extractors of one architecture: each has its own prefix
        raise HrbenchError(
            f"checkpoint {str(path)!r}: its extractor is not {extractor.provenance}, {len(wrong[0])} of {most} tensors "
            f"of the same names differ; expected as backbone and weights those that its flow was trained on"
        )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours.detach().cpu().to(theirs.dtype), theirs)  # the file may be in half precision


def _flat(key: str) -> str:
    return key.replace(".", "_")  # a ``features_only`` network renames blocks.0 to blocks_0, or to model.blocks.0


def _fill_step(step: FlowStep, block: Mapping[str, Tensor], where: str) -> None:
    target = dict(step.named_parameters())
    for theirs, ours in _NAMES.items():
        if theirs not in block:
            raise HrbenchError(f"{where} has no {theirs}, expected one")
        _copy(target[ours], block[theirs], f"{where}.{theirs}")
    matrix = block.get("w_perm")
    channels = len(step.permutation)
    if matrix is None or tuple(matrix.shape) != (channels, channels, 1, 1):
        got = "none" if matrix is None else str(tuple(matrix.shape))
        raise HrbenchError(f"{where}.w_perm is {got}, expected {(channels, channels, 1, 1)}")
    matrix = matrix[:, :, 0, 0]
    one_hot = torch.zeros_like(matrix).scatter_(1, matrix.argmax(dim=1, keepdim=True), 1.0)
    if not torch.equal(matrix, one_hot) or not bool((matrix.sum(dim=0) == 1).all()):
        raise HrbenchError(f"{where}.w_perm is not a permutation, expected permute_soft=False")
    step.set_permutation(matrix.argmax(dim=1))


def _fill_norms(norms: Sequence[nn.LayerNorm], state: Mapping[str, Tensor], path: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    affine = [key for key, shape in shapes.items() if len(shape) == 3 and key.endswith(".weight")]
    affine = [key for key in affine if shapes.get(key.removesuffix("weight") + "bias") == shapes[key]]
    if affine and not norms:
        raise HrbenchError(
            f"checkpoint {str(path)!r}: {affine[0]} is a layer norm of shape {shapes[affine[0]]}, expected "
            f"norm=layer-affine and its input_size"
        )
    for norm in norms:
        shape = tuple(norm.normalized_shape)
        keys = [key for key, value in state.items() if key.endswith(".weight") and tuple(value.shape) == shape]
        if len(keys) != 1 or keys[0].removesuffix("weight") + "bias" not in state:
            raise HrbenchError(
                f"checkpoint {str(path)!r}: {len(keys)} layer norms of shape {shape}, expected one with weight and "
                f"bias; is input_size the one it was trained at?"
            )
        _copy(norm.weight, state[keys[0]], keys[0])
        _copy(norm.bias, state[keys[0].removesuffix("weight") + "bias"], keys[0])


@torch.no_grad()
def _copy(target: Tensor, value: Tensor, where: str) -> None:
    if target.shape != value.shape:
        raise HrbenchError(f"{where} is {tuple(value.shape)}, expected {tuple(target.shape)}")
    target.copy_(value)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.expanduser().is_file():
        raise HrbenchError(f"checkpoint {str(path)!r}: no such file")
    try:
        content: Any = torch.load(path.expanduser(), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a bad file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HrbenchError(
            f"checkpoint {str(path)!r}: not readable as tensors only ({reason}); where you trust the file, save its "
            f"'state_dict' alone with torch.save"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise HrbenchError(f"checkpoint {str(path)!r}: holds a {type(content).__name__}, expected a state dict")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
