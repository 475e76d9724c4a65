"""How long a fit is; optimizers of one kernel; and, as hooks of them, learning rates that change and clipped gradients.

The fit loop (:mod:`hrbench.engine.training`) knows none of it. Both hooks depend only on how many steps the optimizer
has taken, which its state remembers, so that a fit that is continued ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hrbench.errors import HrbenchError

__all__ = ["Budget", "adamw", "clip_gradients", "cosine", "fused", "set_rate", "set_wave", "wave"]


@dataclass(frozen=True)
class Budget:
    """Length of a training stage: a number of steps, or of passes over the inputs.

    Attributes
    ----------
    method : str
        Name, for the error.
    batch_size : int
        Inputs per step.
    steps, epochs : int or None
        One of them.
    prefix : str
        Of both options' names.

    Raises
    ------
    HrbenchError
        Unless one of both is given.
    """

    method: str
    batch_size: int
    steps: int | None
    epochs: int | None
    prefix: str = ""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise HrbenchError(
                f"{self.method}: expected {self.prefix}steps or {self.prefix}epochs, one of them; "
                f"got {self.steps} and {self.epochs}"
            )

    def of(self, inputs: int, *, incomplete: bool = False) -> int:
        """Return the number of steps; of each pass, an incomplete last batch counts if `incomplete`."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * self.of_a_pass(inputs, incomplete=incomplete)

    def of_a_pass(self, inputs: int, *, incomplete: bool = False) -> int:
        """Return the number of steps of one pass."""
        size = max(1, self.batch_size)  # the fit loop refuses others
        return math.ceil(inputs / size) if incomplete else max(1, inputs // size)


def cosine(step: int, steps: int, *, warmup: int = 0, least: float = 0.0) -> float:
    """Return the factor of the learning rate at a step: a linear rise to 1, then half a cosine down to `least`.

    Parameters
    ----------
    step : int
        From 0 to `steps` - 1. The rise reaches 1 at step `warmup` - 1; a first step of rate 0 would be wasted.
    steps, warmup : int
    least : float
    """
    if step < warmup:
        return (step + 1) / warmup
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def wave(step: int, of_a_pass: int, *, period: int, least: float = 0.0) -> float:
    """Return the factor of the learning rate at a step: half a cosine down to `least`, half a cosine up, and so on.

    Parameters
    ----------
    step : int
        From 0.
    of_a_pass : int
        Steps of a pass over the inputs, during which the factor stays.
    period : int
        Passes from 1 to `least`, and as many back.
    least : float
    """
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (step // of_a_pass) / period))


def set_rate(optimizer: torch.optim.Optimizer, steps: int, *, warmup: int = 0, least: float = 0.0) -> None:
    """Let the optimizer's learning rates follow :func:`cosine` over the next `steps` steps of a fresh optimizer."""
    _follow(optimizer, lambda taken: cosine(taken, steps, warmup=warmup, least=least))


def set_wave(optimizer: torch.optim.Optimizer, of_a_pass: int, *, period: int, least: float = 0.0) -> None:
    """Let the learning rates of a fresh optimizer follow :func:`wave`."""
    _follow(optimizer, lambda taken: wave(taken, of_a_pass, period=period, least=least))


def _follow(optimizer: torch.optim.Optimizer, factor_at: Callable[[int], float]) -> None:
    base = [float(group["lr"]) for group in optimizer.param_groups]
    taken: int | None = None

    def before(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        nonlocal taken
        if taken is None:  # asked once: a fused optimizer counts on the device, for which the host would wait
            taken = int(next((state["step"] for state in opt.state.values()), 0))
        factor = factor_at(taken)
        for group, rate in zip(opt.param_groups, base, strict=True):
            group["lr"] = rate * factor
        taken += 1

    def restored(opt: torch.optim.Optimizer) -> None:
        del opt
        nonlocal taken
        taken = None

    optimizer.register_step_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(restored)


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float) -> None:
    """Scale the gradients down to a total length of at most `norm` before every step."""

    def before(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], norm)

    optimizer.register_step_pre_hook(before)


def fused(device: torch.device) -> bool | None:
    """Return the argument of that name of Adam, AdamW and SGD: one kernel for all tensors on a GPU, elsewhere as ever.

    Next to torch's default there, a kernel for each operation, it differs by rounding; on a CPU the bits stay.
    """
    return True if device.type == "cuda" else None


def adamw(parameters: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """Return AdamW as transformers are trained: no weight decay on biases and norms."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.ndim > 1].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.95),
        fused=True,  # one kernel for a transformer's many small tensors
    )
