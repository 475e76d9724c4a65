"""Tensors between the host and a GPU, by memory that both reach, so that neither waits for the other unasked."""

from __future__ import annotations

import torch
from torch import Tensor

from hrbench.engine.device_timer import mark, wait_for

__all__ = ["fetched", "to_device", "to_host"]


def to_host(tensor: Tensor) -> Tensor:
    """Return the tensor in the host's memory; from a GPU it is on its way, and there when the work queued so far is."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device; to a GPU it is on its way."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fetched(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors of one device to the host; on a GPU it takes one wait, and none of them stays in pinned memory."""
    sent, end = [to_host(tensor) for tensor in tensors], mark(tensors[0].device)
    wait_for(end)
    return [tensor.clone() for tensor in sent]
