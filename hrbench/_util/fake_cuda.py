"""A CUDA device for machines without one: tensors say that they lie there, and the CPU computes with their values.

What works here may still fail on a GPU; but what a GPU would refuse fails here too, and its costs can be counted:

- a tensor of the host meets one of the device;
- the host waits for the device: ``float(x)``, ``x.item()``, ``x.cpu()``, ``if mask.any()``, shapes that depend on
  values, a copy to the device that is not ``non_blocking``, ``torch.cuda.synchronize()``;
- a tensor of float64 comes up on the device.

Under :func:`torch.autocast` operations take the types that torch gives them on CUDA. Random numbers are those of the
CPU's generator. It holds in the thread that entered it, in threads that start meanwhile, and in backward passes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "Log", "fake_cuda"]

DEVICE = torch.device("cuda", 0)

_HOST = torch.device("cpu")
_HIDDEN = torch.device("meta", 0)  # what C++ takes the device for: it has a backward pass on every machine

# By name, without the overload, as they are left of what torch/ATen/autocast_mode.h names when composites are resolved.
_TO_LOW = {
    "convolution", "_convolution", "prelu", "_prelu_kernel", "addmm", "addmv", "addr", "mm", "mv", "dot", "vdot",
    "linear", "matmul", "addbmm", "baddbmm", "bmm", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
}  # fmt: skip
_TO_FLOAT = {
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow", "softplus", "native_layer_norm", "native_group_norm", "norm", "linalg_vector_norm", "renorm",
    "nll_loss_forward", "nll_loss2d_forward", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "_cdist_forward", "_pdist_forward", "logsumexp", "_softmax", "_log_softmax",
    "prod", "cumprod", "cumsum", "sum", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d",
    "_upsample_nearest_exact2d", "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa",
}  # fmt: skip
_TO_WIDEST = {"addcdiv", "addcmul", "atan2", "cross", "grid_sampler_2d", "index_put", "scatter_add"}
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CASTABLE = {torch.float16, torch.bfloat16, torch.float32}
_CHECKED = {"linalg_eigh", "_linalg_eigh", "bincount"}  # the host reads whether they worked, or how far
_TAKES_NUMBERS = {"index_put", "index_put_", "_index_put_impl_", "masked_fill", "masked_fill_", "fill_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Log:
    """What the device was asked for.

    Attributes
    ----------
    waits : list of str
        For each time that the host waited for the device: what it asked for, and the line that did.
    beside : list of str
        The same of threads beside the one that began the log, which keep it from nothing.
    doubles : list of str
        The same for each operation that gave float64 on the device.
    """

    waits: list[str] = field(default_factory=list)
    doubles: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)

    def wait(self, what: str) -> None:
        """Note that the host waits."""
        waits = self.waits if threading.get_ident() == self.thread else self.beside
        waits.append(f"{what} at {_line()}")

    def clear(self) -> None:
        """Count anew."""
        self.waits.clear()
        self.beside.clear()
        self.doubles.clear()


@contextmanager
def fake_cuda() -> Iterator[Log]:
    """Let there be the device ``cuda:0`` in a block; yield what it is asked for.

    Raises
    ------
    RuntimeError
        In the block, for what a GPU would refuse.
    """
    log = Log()
    with ExitStack() as stack:
        mode = _Mode(log, {})
        for owner, stand_ins in _stand_ins(mode):
            stack.enter_context(mock.patch.multiple(owner, **stand_ins))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        lifted = torch._C._only_lift_cpu_tensors()
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifted)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(numbers, device=...) makes them on the host first
        stack.enter_context(mode)
        yield log


class _OnDevice(Tensor):
    """A tensor of the device: its values are those of `held`, a tensor of the host."""

    held: Tensor
    home: _Mode

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor, home: _Mode) -> _OnDevice:
        made: _OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_HIDDEN,
        )
        made.held, made.home = held, home
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what is left when the mode does not hold."""
        found = next(x for x in _tensors_in((args, kwargs)) if isinstance(x, _OnDevice))
        return found.home.run(func, args, kwargs or {})

    def new_tensor(  # type: ignore[override]
        self, data: Any, dtype: torch.dtype | None = None, device: Any = None, **options: Any
    ) -> Tensor:
        """Copy numbers to the device, where torch would make an empty tensor of a device without values."""
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or DEVICE, **options)

    def tolist(self) -> Any:
        """Bring the values to the host."""
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be saved as torch saves a tensor of a GPU: through the host, and from there it comes back."""
        self.home.log.wait("saving")
        reduced: Any = self.held.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]
        return reduced

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.held!r} on {DEVICE}"


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation of a thread in the block."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # where it holds, torch does not look for a driver

    def __init__(self, log: Log, pinned: dict[int, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log
        self.autocasts = torch.is_autocast_enabled("cuda")  # below, where operations are seen, torch says no
        self.pinned = pinned  # by address; held, so that no address comes again

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Lie below other modes."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do an operation on the values, and say where the result lies."""
        tensors = list(_tensors_in((args, kwargs)))
        there = [x for x in tensors if isinstance(x, _OnDevice)]
        asked = kwargs.get("device")
        on_device = bool(there) if asked is None else asked.type == "cuda" or asked == _HIDDEN
        name = func.overloadpacket.__name__
        if not (there or on_device or kwargs.get("pin_memory")):
            return self._pinning(name, args[0]) if name in ("is_pinned", "_pin_memory") else func(*args, **kwargs)
        if name == "_to_copy":
            self._transfer(args[0], on_device, bool(kwargs.get("non_blocking")), host_pinned=True)
        elif name == "copy_":
            on_device = isinstance(args[0], _OnDevice)
            self._transfer(
                args[1], on_device, args[2] if len(args) > 2 else False, host_pinned=self._is_pinned(args[0])
            )
        else:
            self._check_places(func, name, args, tensors, there)
            if _waits(func, name, args):
                self.log.wait(name)
        generator = kwargs.get("generator")
        if on_device and generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{name} on {DEVICE}: expected a 'cuda' device type for generator but found 'cpu'")
        target = _type_on_cuda(name, tensors, self.autocasts) if there else None

        def value(tensor: Tensor) -> Tensor:
            held = tensor.held if isinstance(tensor, _OnDevice) else tensor
            return held if target is None or held.dtype not in _CASTABLE else held.to(target)

        given, options = _mapped(value, (args, kwargs))
        if asked is not None:
            options["device"] = _HOST
        pinned = options.pop("pin_memory", False)
        found = func(*given, **options)
        if pinned:
            self._pin(found)
        if not on_device:
            return found
        written = {id(x.held): x for x in there}
        return _mapped(lambda x: written[id(x)] if id(x) in written else self._put(x, name), found)

    def _put(self, held: Tensor, name: str) -> _OnDevice:
        if held.dtype == torch.float64:
            self.log.doubles.append(f"{name} at {_line()}")
        return _OnDevice(held, self)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, _OnDevice) and tensor.untyped_storage().data_ptr() in self.pinned

    def _pinning(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return self._is_pinned(tensor)
        found = tensor.clone()
        self._pin(found)
        return found

    def _pin(self, tensor: Tensor) -> None:
        """Let a tensor of the host lie where a GPU fetches from and sends to by itself."""
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor

    def _transfer(self, source: Tensor, to_device: bool, non_blocking: bool, *, host_pinned: bool) -> None:
        if isinstance(source, _OnDevice) and not to_device and not (non_blocking and host_pinned):
            self.log.wait("copy to the host")
        elif not isinstance(source, _OnDevice) and to_device and not non_blocking:
            self.log.wait("copy to the device")

    def _check_places(
        self, func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor], there: Sequence[Tensor]
    ) -> None:
        """Raise an error where tensors of host and device meet, but for numbers, and for indices of the host."""
        here = [x for x in tensors if not isinstance(x, _OnDevice)]
        if not (here and there):
            return
        if name in _INDEXED and isinstance(args[0], _OnDevice):
            indices = [x for x in args[1] if isinstance(x, Tensor) and not isinstance(x, _OnDevice)]
            for _ in indices:
                self.log.wait("copy of indices to the device")
            here = [x for x in here if not any(x is index for index in indices)]
        numbers = torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS or name.startswith("_foreach")
        written = func._schema.is_mutable and any(x is args[0] for x in here)
        if any(x.ndim for x in here) or (here and not numbers) or written:
            _refuse(name, here[0])


def _refuse(name: str, tensor: Tensor) -> NoReturn:
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu: a tensor of "
        f"shape {tuple(tensor.shape)} of the host in {name} at {_line()}"
    )


def _waits(func: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Tell whether the host has to see a value to go on."""
    if torch.Tag.data_dependent_output in func.tags or name in _CHECKED:
        return True
    if name in _INDEXED:  # a mask becomes places; but a number is put under a mask as it is
        masks = any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        return masks and (name == "index" or args[2].ndim > 0)
    return torch.Tag.dynamic_output_shape in func.tags


def _type_on_cuda(name: str, tensors: list[Tensor], autocasts: bool) -> torch.dtype | None:
    """Return the type to which an operation on CUDA casts floating tensors; None if it takes them as they are."""
    floats = {x.dtype for x in tensors if x.dtype in _CASTABLE}
    if torch._C._current_graph_task_id() != -1:
        # A gradient of few bits meets what the forward pass had before its casts: autograd does not know of those.
        return torch.float32 if len(floats) > 1 else None
    if autocasts and name in _TO_LOW:
        return torch.get_autocast_dtype("cuda")
    if autocasts and (name in _TO_FLOAT or (name in _TO_WIDEST and len(floats) > 1)):
        return torch.float32
    return None


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with its tensors replaced."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, item) for item in value])
    if isinstance(value, dict):
        return {key: _mapped(function, item) for key, item in value.items()}
    return value


def _line() -> str:
    """Return the line outside torch and this module from which the operation came."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((__file__, _TORCH, "<")):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "an unknown line"


def _mode_of_thread() -> _Mode | None:
    found: Any = torch._C._get_dispatch_mode(_Mode._mode_key)
    return found if isinstance(found, _Mode) else None


_TORCH = str(Path(torch.__file__).parent)


def _stand_ins(mode: _Mode) -> list[tuple[Any, dict[str, Any]]]:
    """Return modules, and what takes the place of their functions."""
    log, set_autocast = mode.log, torch.set_autocast_enabled

    def always(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    class Event:
        """A point in the time of a device that is never behind."""

        def __init__(self, **_: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            """Do nothing."""

        def synchronize(self) -> None:
            """Note that the host waits."""
            log.wait("Event.synchronize")

        def elapsed_time(self, other: Event) -> float:
            """Return a millisecond."""
            return 1.0

    class Stream(Event):
        """A queue that is always empty."""

        def synchronize(self) -> None:
            """Note that the host waits."""
            log.wait("Stream.synchronize")

        def is_capturing(self) -> bool:
            """Say no: nobody records a graph."""
            return False

    def set_autocast_enabled(kind: str, enabled: bool) -> None:
        set_autocast(kind, enabled)
        if kind == "cuda" and (here := _mode_of_thread()):
            here.autocasts = enabled

    def lowered(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Cast before the types of input and bias are compared, which is before any operation is seen."""

        def called(*args: Any, **kwargs: Any) -> Tensor:
            here = _mode_of_thread()
            if here and here.autocasts and any(isinstance(x, _OnDevice) for x in (*args, *kwargs.values())):
                args, kwargs = _mapped(lambda x: x.to(torch.get_autocast_dtype("cuda")), (args, kwargs))
            return convolution(*args, **kwargs)

        return called

    to, run = Tensor.to, threading.Thread.run

    def run_on_device(self: threading.Thread) -> None:
        with _Mode(log, mode.pinned):
            run(self)

    def indexed(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Spare torch the question which GPU "cuda" is."""
        cuda = ("cuda", torch.device("cuda"))
        args = tuple(DEVICE if isinstance(x, str | torch.device) and x in cuda else x for x in args)
        if kwargs.get("device") in cuda:
            kwargs["device"] = DEVICE
        return to(self, *args, **kwargs)

    def cuda(self: Tensor, device: Any = None, **kwargs: Any) -> Tensor:
        return to(self, DEVICE, **kwargs)

    of_tensor = {"to": indexed, "cuda": cuda}
    of_functional = {name: lowered(getattr(functional, name)) for name in _CONVOLUTIONS}
    stream = Stream()
    of_cuda: dict[str, Any] = {
        "is_available": always(True),
        "is_bf16_supported": always(True),
        "is_current_stream_capturing": always(False),
        "get_device_capability": always((8, 0)),
        "get_device_name": always("fake CUDA"),
        "get_device_properties": always(SimpleNamespace(total_memory=1 << 40, uuid="fake")),
        "max_memory_allocated": always(0),
        "mem_get_info": always((1 << 40, 1 << 40)),
        "memory_allocated": always(0),
        "memory_reserved": always(0),
        "reset_peak_memory_stats": always(None),
        "current_stream": always(stream),
        "synchronize": lambda device=None: log.wait("torch.cuda.synchronize"),
        "Event": Event,
    }
    of_accelerator = {"current_stream": always(stream)}  # what optimizers ask
    of_torch = {"set_autocast_enabled": set_autocast_enabled}
    return [
        (torch, of_torch),
        (torch.cuda, of_cuda),
        (torch.accelerator, of_accelerator),
        (functional, of_functional),
        (Tensor, of_tensor),
        (threading.Thread, {"run": run_on_device}),
    ]
