"""What the options of the built-in methods may be, beside their types; an option means the same in all of them.

No method imports this module: a run is identified by the source of its method, and bounds change no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hrbench.errors import HrbenchError

__all__ = ["check_ranges"]

Rule = tuple[str, Callable[[Any], bool]]

_COUNT: Rule = ("at least 1", lambda x: x >= 1)
_COUNT_OR_NONE: Rule = ("at least 0", lambda x: x >= 0)
_POSITIVE: Rule = ("a number above 0", lambda x: 0 < x < math.inf)
_NOT_NEGATIVE: Rule = ("a number of at least 0", lambda x: 0 <= x < math.inf)
_COUNTS: Rule = ("at least one number, each at least 1", lambda x: len(x) > 0 and min(x) >= 1)
_KERNELS: Rule = ("at least one number, each 1 or 3", lambda x: len(x) > 0 and set(x) <= {1, 3})

_RULES: dict[str, Rule] = {
    **dict.fromkeys(("batch_size", "mae_batch_size", "discriminator_batch_size"), _COUNT),
    **dict.fromkeys(("flow_steps", "patch", "input_size", "width", "lr_period"), _COUNT),
    **dict.fromkeys(("decoder_width", "decoder_heads", "decoder_depth"), _COUNT),
    **dict.fromkeys(("steps", "epochs", "mae_steps", "mae_epochs", "discriminator_steps"), _COUNT_OR_NONE),
    **dict.fromkeys(("lr", "mae_lr", "discriminator_lr", "hidden_ratio", "clip", "loss_factor"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "momentum", "gamma", "l1"), _NOT_NEGATIVE),
    "strides": _COUNTS,
    "kernels": _KERNELS,
}


def check_ranges(method: str, options: Mapping[str, Any]) -> None:
    """Raise an error for an option of a method, of the right type, that is out of its range; None is in any."""
    for option, value in options.items():
        expected, fits = _RULES.get(option, ("", lambda _: True))
        if value is not None and not fits(value):
            raise HrbenchError(f"option {option} of {method} is {value!r}, expected {expected}")
