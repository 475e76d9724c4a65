"""Code of others in this process: what it changes for everybody is put back, and it cannot end the process.

Methods share a process, and a method's fit and its predictions may be done by different ones. So every call of a method
begins from the same settings, whatever ran before it: none may change the numbers of the next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.backends.opt_einsum  # torch 2.6 does not by itself
from torch import backends

from hrbench.errors import HrbenchError

__all__ = ["call_name", "generators_kept", "guarded", "set_seed"]

log = logging.getLogger("hrbench")

_OF_LIBRARIES = ("KMP_", "TORCHINDUCTOR_", "TRITON_")  # environment variables that they set when they are first used
_told: set[tuple[str, str]] = set()  # whose changes of what a warning has told
_entered: list[Any] = []  # inference modes that hold as long as they are kept


class _Setting(NamedTuple):
    """Something that holds for the whole process or thread."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _flag(path: str, name: str = "") -> _Setting:
    """Return a flag of :mod:`torch.backends`."""
    owner, _, last = path.rpartition(".")
    module = attrgetter(owner)(backends) if owner else backends
    return _Setting(name or f"torch.backends.{path}", partial(getattr, module, last), partial(setattr, module, last))


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set in torch's newer way to what the older one has no word for
        return None


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)
    if torch.empty(0).device != device:
        device.__exit__(None, None, None)  # of a context that was left on


def _set_inference_mode(on: bool) -> None:
    _entered.append(torch.inference_mode(on))
    _entered[-1].__enter__()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_autocast_depth(depth: int) -> None:
    """Leave contexts that were left on: while one is, casts of parameters outlive the steps that change them."""
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _flushes_denormals() -> bool:
    return sys.float_info.min * 0.5 == 0.0


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def _folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _set_folder(folder: Path | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_LIBRARIES)}


def _set_environment(before: dict[str, str]) -> None:
    for key in _environment().keys() - before.keys():
        del os.environ[key]
    os.environ.update(before)


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()
    warnings.filters[:] = filters  # type: ignore[index]


def _signal(number: int, name: str) -> _Setting:
    def write(handler: Any) -> None:
        if handler is not None:  # None: one that Python has not set
            signal.signal(number, handler)

    return _Setting(f"what {name} does", partial(signal.getsignal, number), write)


_PRECISION = "the precision of float32 products"
# In an order in which they can be put back: the old way to say the precision sets all of the new ways.
_NUMERIC = [
    _Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("the default device", lambda: torch.empty(0).device, _set_device),
    _Setting("the number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("inference mode", torch.is_inference_mode_enabled, _set_inference_mode),
    *(
        _Setting(f"autocast on {kind}", partial(read, kind), partial(write, kind))
        for kind in ("cpu", "cuda")
        for read, write in (
            (torch.is_autocast_enabled, torch.set_autocast_enabled),
            (torch.get_autocast_dtype, torch.set_autocast_dtype),
        )
    ),
    _Setting("autocast", _autocast_depth, _set_autocast_depth),
    _Setting("autocast's cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    _Setting("the flushing of denormal numbers", _flushes_denormals, torch.set_flush_denormal),
    _Setting(
        "deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    _Setting(_PRECISION, _matmul_precision, torch.set_float32_matmul_precision),
    _flag("cudnn.allow_tf32"),
    *(
        _flag(f"{owner}fp32_precision", _PRECISION)
        for owner in ("", "cudnn.", "mkldnn.", "cuda.matmul.", "cudnn.conv.", "cudnn.rnn.",
                      "mkldnn.matmul.", "mkldnn.conv.", "mkldnn.rnn.")
        if hasattr(backends, "fp32_precision")
    ),
    *map(
        _flag,
        ("cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "mkldnn.enabled", "mkldnn.deterministic",
         "cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_bf16_reduced_precision_reduction",
         "opt_einsum.enabled", "opt_einsum.strategy"),
    ),
    *(
        _Setting(f"torch.backends.cuda.enable_{kind}_sdp", getattr(backends.cuda, f"{kind}_sdp_enabled"),
                 getattr(backends.cuda, f"enable_{kind}_sdp"))
        for kind in ("flash", "mem_efficient", "math", "cudnn")
    ),
    _Setting("torch.backends.mha", backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
    _Setting("numpy's handling of errors", np.geterr, lambda handling: np.seterr(**handling)),
    _Setting("the current folder", _folder, _set_folder),
]  # fmt: skip
_ENVIRONMENT = _Setting("the environment", _environment, _set_environment)
_SIGNALS = [_signal(signal.SIGINT, "Ctrl-C"), _signal(signal.SIGTERM, "SIGTERM")]  # only the main thread can set them
_FILTERS = _Setting("", lambda: warnings.filters[:], _set_filters)


def guarded(who: str, *, briefly: bool = False) -> contextlib.AbstractContextManager[list[str]]:
    """Run code of others in a block, and put back what it changes for the whole process; one warning says what.

    Put back are torch's settings on which numbers depend (dtype, device, threads, grad mode, autocast, precision,
    determinism, the flags of its backends), numpy's handling of errors and the current folder; of a block that is not
    brief also the environment, what Ctrl-C and SIGTERM do and, without a word, filters of warnings. The states of
    generators are not, see :func:`generators_kept`. The block is given what was changed, in words: filled at its end.

    Parameters
    ----------
    who : str
        Whose code it is, for messages.
    briefly : bool
        For what is called many times: it takes some 50 microseconds.

    Raises
    ------
    HrbenchError
        In the place of ``SystemExit``.
    """
    return _Guarded(who, briefly)


class _Guarded(contextlib.AbstractContextManager[list[str]]):
    """No generator: one that is left open would put back what it found whenever it happens to be collected."""

    def __init__(self, who: str, briefly: bool) -> None:
        self._who, self._briefly = who, briefly

    def __enter__(self) -> list[str]:
        self._kept = _NUMERIC
        if not self._briefly:
            main = threading.current_thread() is threading.main_thread()
            self._kept = [*_NUMERIC, _ENVIRONMENT, *(_SIGNALS if main else []), _FILTERS]
        self._before = [setting.read() for setting in self._kept]
        self._changed: list[str] = []
        return self._changed

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        who = self._who
        words = {
            setting.name: _difference(setting.name, value, now)
            for setting, value in zip(self._kept, self._before, strict=True)
            if (now := setting.read()) != value and setting.name
        }
        for setting, value in zip(self._kept, self._before, strict=True):
            if setting.read() != value:  # read again: putting another one back may have changed it
                setting.write(value)
        self._changed += words.values()
        if new := [word for name, word in words.items() if (who, name) not in _told]:
            _told.update((who, name) for name in words)
            log.warning(
                "%s changed %s: put back, because other methods share the process; what a method needs it sets in each "
                "of its calls (fit, calibrate, predict, finish)",
                who,
                ", ".join(new),
            )
        if isinstance(error, SystemExit):
            raise HrbenchError(
                f"{who} called sys.exit({error.code!r}), expected it to return or to raise an error that says why it "
                "cannot"
            ) from None


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of the generators of torch on the CPU, numpy and ``random`` after a block."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def set_seed(seed: int) -> None:
    """Seed the generators of torch, and those of numpy and ``random``, which not every method leaves alone."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def call_name(instance: object, call: str) -> str:
    """Return a call of a method for messages, with the file that its class is in: ``Toy.fit (toy_adapter.py)``."""
    cls = type(instance)
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{cls.__name__}.{call} ({Path(file).name if file else cls.__module__})"


def _difference(name: str, before: Any, after: Any) -> str:
    if isinstance(before, dict):  # its values may be secret
        return f"{name} ({', '.join(sorted(key for key in before | after if before.get(key) != after.get(key)))})"
    return name if name == _PRECISION else f"{name} ({before} to {after})"
