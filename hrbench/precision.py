"""The precision that networks run in: float32, or bfloat16 by autocast where the device is much faster with it.

Under autocast torch itself chooses per operation: convolutions and matrix products take bfloat16, whose eight bits of
mantissa are enough for features; parameters, optimisers, losses and what a method keeps apart with `full_precision`, as
likelihoods, stay in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from hrbench.errors import unknown_name

__all__ = ["PRECISIONS", "autocast", "full_precision", "pick_precision"]

PRECISIONS: Sequence[str] = ("auto", "float32", "bfloat16")


def pick_precision(name: str, device: torch.device) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 on GPUs that compute with it, else float32.

    Raises
    ------
    HrbenchError
        For an unknown name.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return name
    # Earlier NVIDIA GPUs only emulate it, slower than float32.
    native = device.type == "cuda" and (bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0))
    return "bfloat16" if native else "float32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which networks run in `precision`, ``float32`` or ``bfloat16``."""
    if precision == "float32":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[object] = torch.autocast(device.type, dtype=torch.bfloat16)
    return context


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a run's autocast does not hold; what goes in still has to be made ``float()``."""
    # Not available for shapes alone, on "meta"; where there is no autocast, an exported graph needs none of it either.
    if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[object] = torch.autocast(device.type, enabled=False)
    return context
