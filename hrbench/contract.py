"""What an adapter gives, held against :mod:`hrbench.method`: what came, what is expected, the adapter's own line."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from hrbench.errors import HrbenchError
from hrbench.method import Method, OnHost, Prediction, Preset

__all__ = [
    "breach",
    "check_class",
    "check_decision",
    "check_features",
    "check_final",
    "check_loss",
    "check_prediction",
    "explained",
    "fails_one_job",
    "import_error",
    "make",
    "parts_of",
]

log = logging.getLogger("hrbench")

_CALLS = {
    "fit": "fit(self, normals, context)",
    "predict": "predict(self, batch)",
    "predict_inputs": "predict_inputs(self, batch, inputs_per_image)",
    "exported_maps": "exported_maps(self, batch)",
    "finish": "finish(self, maps)",
    "calibrate": "calibrate(self, maps)",
}
FRAMES = 5  # of the adapter's, that an error shows: the last ones
_FOREIGN = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")] + [Path(__file__).parent]


def breach(source: Any, found: str, expected: str) -> HrbenchError:
    """Return the error for what a function or class of an adapter gives or has, with its file and line."""
    while isinstance(source, functools.partial):
        source = source.func
    source = inspect.unwrap(getattr(source, "__func__", source))
    if not (inspect.isfunction(source) or inspect.isclass(source)):
        source = type(source)
    try:
        path = inspect.getsourcefile(source)
        line = source.__code__.co_firstlineno if inspect.isfunction(source) else inspect.getsourcelines(source)[1]
    except (OSError, TypeError):  # made by a program
        path = None
    place = f"{_shown(path)}:{line}: " if path else ""
    return HrbenchError(f"{place}{source.__qualname__} {found}, expected {expected}")


def check_class(cls: type[Method]) -> None:
    """Raise an error unless the presets of a method are presets by name, and its image score a rule in words."""
    if not isinstance(cls.image_score, str):
        raise breach(cls, f"has {_described(cls.image_score)} as image_score", '"max", "mean" or "top:SHARE"')
    presets: Any = cls.presets
    expected = 'a dict of presets by name, {"native": hrbench.Preset("tiled:256:64", {"option": value})}'
    if not isinstance(presets, Mapping):
        raise breach(cls, f"has {_described(presets)} as presets", expected)
    for name, preset in presets.items():
        if not (isinstance(name, str) and isinstance(preset, Preset)):
            raise breach(cls, f"has {_described(preset)} as preset {name!r}", expected)
        if not (isinstance(preset.view, str) and isinstance(preset.options, Mapping)):
            found = f"{_described(preset.view)} and {_described(preset.options)}"
            raise breach(cls, f"has preset {name!r} of {found}", "a view in words and a dict of options")


def make(cls: type[Method], options: Mapping[str, Any]) -> Method:
    """Make a method with options that were checked.

    Raises
    ------
    HrbenchError
        For a constructor that does not begin as torch needs it, sizes that are none, and a method that lacks ``fit`` or
        ``predict``. What the constructor itself raises passes.
    """
    try:
        method = cls(**options)
        begun = "_modules" in vars(method)
    except AttributeError as error:
        if "Module.__init__() call" not in str(error):
            raise
        begun = False
    if not begun:
        raise breach(cls.__init__, "begins without super().__init__()", "that before all else")
    if cls.fit is Method.fit:
        raise breach(cls, "has no fit", _CALLS["fit"])
    if cls.predict is Method.predict and cls.predict_inputs is Method.predict_inputs:
        raise breach(cls, "has no predict", _CALLS["predict"])
    for name, expected in _CALLS.items():
        _check_call(cls, name, expected)
    if not _is_size(method.multiple):
        raise breach(cls, f"has multiple {method.multiple!r}", "a whole number of at least 1")
    size = method.input_size
    if size is not None and not (_is_size(size) and size % method.multiple == 0):
        raise breach(cls, f"has input_size {size!r}", f"None or a multiple of {method.multiple}")
    if not isinstance(method.finish_padded, bool):
        raise breach(cls, f"has finish_padded {method.finish_padded!r}", "True or False")
    return method


def _check_call(cls: type[Method], name: str, expected: str) -> None:
    """Raise an error unless the suite can call a method of an adapter as it does."""
    call = getattr(cls, name)
    if not callable(call):
        raise breach(cls, f"has {_described(call)} as {name}", expected)
    try:
        inspect.signature(call).bind(*range(expected.count(",") + 1))
    except TypeError as error:
        raise breach(call, f"cannot be called ({error})", expected) from None
    except ValueError:  # of a call that does not say what it takes
        return


def check_features(extract: Callable[..., Any], given: Any, inputs: int) -> Sequence[Tensor]:
    """Return what an extractor gave of some inputs; anything but a list of tensors, a row per input, is an error."""
    expected = f"a list of Tensors of shape ({inputs}, ...)"
    if not isinstance(given, list | tuple):
        raise breach(extract, f"gave {_described(given)}", expected)
    for item in given:
        if not (isinstance(item, Tensor) and item.ndim and len(item) == inputs):
            raise breach(extract, f"gave a list with {_described(item)}", expected)
    return given


def check_loss(loss: Callable[..., Any], given: Any) -> Tensor:
    """Return what a loss gave; anything but one real number that knows what it was computed from is an error."""
    expected = "one number as a Tensor, for example loss.mean()"
    if not (isinstance(given, Tensor) and given.numel() == 1 and given.is_floating_point()):
        raise breach(loss, f"gave {_described(given)}", expected)
    if not given.requires_grad:
        raise breach(
            loss,
            "gave a loss that depends on nothing that learns",
            "one computed from parameters, without detach() or no_grad",
        )
    return given


def check_prediction(
    method: Method, given: Any, inputs: int, device: torch.device, parts: Sequence[str] = ()
) -> Prediction:
    """Return what a method predicted of some inputs, if it is a prediction.

    Parameters
    ----------
    method : Method
    given : object
    inputs : int
    device : torch.device
    parts : sequence of str
        Of the predictions before, see :func:`parts_of`; none by default.

    Raises
    ------
    HrbenchError
        For anything but named maps (inputs, h, w) of real numbers on the device, and a decision of as many; for
        several maps where there is no ``finish`` to combine them; for other parts than before.
    """
    cls = type(method)
    source = cls.predict if cls.predict_inputs is Method.predict_inputs else cls.predict_inputs
    wrong = functools.partial(breach, source)
    if not isinstance(given, Prediction):
        raise wrong(f"gave {_described(given)}", 'hrbench.Prediction({"name": map})')
    if not (isinstance(given.maps, Mapping) and given.maps and all(isinstance(name, str) for name in given.maps)):
        raise wrong(f"gave {_described(given.maps)} as maps", 'at least one by name, {"name": map}')
    for name, found in given.maps.items():
        if not (_is_stack(found, inputs, device) and found.is_floating_point()):
            raise wrong(
                f"gave {_described(found)} as map {name!r}", f"a float32 Tensor of shape ({inputs}, h, w) on {device}"
            )
    if not isinstance(given.decision, OnHost):
        check_decision(method, given.decision, inputs, device)
    if len(given.maps) > 1 and cls.finish is Method.finish:
        raise wrong(f"gave {len(given.maps)} maps, {', '.join(given.maps)}", "one, or a finish(self, maps)")
    if parts and (now := parts_of(given)) != parts:
        raise wrong(f"gave {', '.join(now)}", f"{', '.join(parts)} as for the inputs before")
    return given


def check_decision(method: Method, given: Any, inputs: int, device: torch.device) -> Tensor | None:
    """Return what a method decided of some inputs, if it is a decision or None; see :func:`check_prediction`."""
    if given is not None and not (_is_stack(given, inputs, device) and given.dtype == torch.bool):
        cls = type(method)
        source = cls.predict if cls.predict_inputs is Method.predict_inputs else cls.predict_inputs
        expected = f"None or a bool Tensor of shape ({inputs}, h, w) on {device}"
        raise breach(source, f"gave {_described(given)} as decision", expected)
    decision: Tensor | None = given
    return decision


def parts_of(prediction: Prediction) -> list[str]:
    """Return what a prediction consists of, in words: its maps by name, and its decision."""
    return [*(f"map {name!r}" for name in sorted(prediction.maps)), *["a decision"] * (prediction.decision is not None)]


def check_final(method: Method, given: Any, size: torch.Size, sample: str) -> Tensor:
    """Return the anomaly map that a method's ``finish`` gave of an image, if it is one of that size."""
    if not (isinstance(given, Tensor) and given.is_floating_point() and given.shape == size):
        raise breach(
            type(method).finish,
            f"gave {_described(given)} of {sample}",
            f"the anomaly map, a float32 Tensor of shape {tuple(size)}",
        )
    return given


def fails_one_job(error: BaseException) -> bool:
    """Tell whether an exception concerns one job: any but an end of the process, of which adapters may make none."""
    if isinstance(error, Exception):
        return True
    file = getattr(sys.modules.get(type(error).__module__), "__file__", None)
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return file is not None and any(_adapter_of(frame) == Path(file) for frame in frames)


def explained(error: BaseException) -> Exception:
    """Return the one error that tells what an adapter raised and where, by its own lines; of others, the error itself.

    Errors that are the user's pass as they are. The whole traceback is logged at level debug.
    """
    if isinstance(error, HrbenchError):
        return error
    adapter = next(filter(None, (_adapter_of(frame) for frame, _ in traceback.walk_tb(error.__traceback__))), None)
    if adapter is None:
        return error if isinstance(error, Exception) else RuntimeError(repr(error))
    folder = adapter.parent

    def own(path: Path) -> bool:
        return path.is_relative_to(folder) and "site-packages" not in path.relative_to(folder).parts

    log.debug("%s", type(error).__name__, exc_info=error)
    found = HrbenchError(_told(error, own))
    found.__cause__ = error
    return found


def import_error(what: str, error: BaseException) -> HrbenchError:
    """Return the error that tells why an adapter cannot be imported, and where, by lines outside of any library."""
    return HrbenchError(f"{what} cannot be imported: {_told(error, lambda path: not _foreign(path))}")


def _described(value: Any) -> str:
    """Return what a value is, in words."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = type(value).__name__
        place = f" on {value.device}" if isinstance(value, Tensor) and value.device.type != "cpu" else ""
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} of shape {tuple(value.shape)}{place}"
    if value is None or isinstance(value, str | int | float):
        return f"{value!r}"
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}" if value else f"an empty {type(value).__name__}"
    return f"a {type(value).__name__}"


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_stack(value: Any, inputs: int, device: torch.device) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 3
        and len(value) == inputs
        and value.numel() > 0
        and value.device.type == device.type
    )


def _adapter_of(frame: FrameType) -> Path | None:
    """Return the file of the adapter whose method runs in a frame."""
    instance, path = frame.f_locals.get("self"), frame.f_code.co_filename
    if not isinstance(instance, Method):
        return None
    own = [item for cls in type(instance).__mro__ if cls not in Method.__mro__ for item in vars(cls).values()]
    files = {inspect.unwrap(item).__code__.co_filename for item in own if inspect.isfunction(item)}
    return Path(path) if path in files else None


def _foreign(path: Path) -> bool:
    return not path.is_absolute() or any(path.is_relative_to(root) for root in _FOREIGN)


def _told(error: BaseException, own: Callable[[Path], bool]) -> str:
    """Return an exception in its words, and below them the lines of its traceback that are the adapter's own."""
    words = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, SyntaxError | ImportError):
        words = str(error)  # names file and line, or the module
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if own(Path(frame.filename))]
    places = [f"  {_shown(frame.filename)}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-FRAMES:]]
    return "\n".join([words, *places])


def _shown(path: str) -> str:
    """Return a path as people have it before them: from the current folder where it lies below."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
