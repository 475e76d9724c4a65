"""The contract of a method, and how methods are found by name.

A method is one file: a :class:`Method` subclass with ``fit`` and ``predict``. Decoding, tiling, blending,
batching, checkpoints, scoring and recording are the suite's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from hrbench._layout import methods_package
from hrbench.errors import HrbenchError, unknown_name

__all__ = [
    "Batches",
    "FitContext",
    "Method",
    "Normals",
    "Prediction",
    "Preset",
    "create_method",
    "list_methods",
    "load_method",
]

Batch = TypeVar("Batch", Tensor, list[Tensor])
Batch_co = TypeVar("Batch_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named configuration of a method.

    Attributes
    ----------
    view : str
        How images are looked at, for example ``tiled:512:128`` (see :mod:`hrbench.views`).
    options : Mapping
        Keyword arguments of the method's constructor.
    """

    view: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says of a batch.

    Attributes
    ----------
    maps : dict of str to Tensor
        One or more named (B, h', w') float32 anomaly maps at any stride. Higher is more anomalous, the
        scale is free; a map should not saturate, for ties among strong anomalies cost rank metrics.
    decision : Tensor or None
        (B, h', w') bool, where the method has a threshold of its own.
    """

    maps: dict[str, Tensor]
    decision: Tensor | None = None


class Batches(Protocol[Batch_co]):
    """What the fit loop draws from: inputs, or features of inputs."""

    def __len__(self) -> int:
        """Return the number of inputs."""
        ...

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Batch_co]:
        """Yield batches `start` .. `steps` - 1 of an endless shuffled stream that `seed` determines."""
        ...


class Normals(Batches[Tensor], Protocol):
    """The normal training images as model inputs, that is through the view: whole images or tiles."""

    def __len__(self) -> int:
        """Return the number of inputs."""
        ...

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every input once, in a fixed order: (3, h, w) float32 in [0, 1] on the CPU."""
        ...

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
        """Yield batches `start` .. `steps` - 1 of an endless shuffled stream that `seed` determines.

        Each is (batch_size, 3, h, w) float32 in [0, 1] on the CPU.
        """
        ...

    def order(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[int]]:
        """Yield which inputs, counted as iteration yields them, :meth:`batches` would give."""
        ...

    def take(self, chosen: Sequence[int]) -> Tensor:
        """Return chosen inputs as a batch, as :meth:`batches` does."""
        ...


class FitContext(Protocol):
    """What the suite gives ``fit`` besides the images.

    Attributes
    ----------
    seed : int
        Of the job; the only source of randomness.
    device : torch.device
    held_out : Normals
        Normal training images that `normals` does not contain, for stopping rules and scales.
    """

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def held_out(self) -> Normals: ...  # noqa: D102

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> Batches[list[Tensor]]:
        """Return the features of `normals`, computed once and kept where memory or disk allows.

        For parts of a method that never change while it is fitted, as a frozen backbone: with what is returned in place
        of `normals`, and a loss of features, :meth:`train` runs the backbone once per input instead of once per input
        and epoch::

            features = context.features(normals, self.backbone)
            context.train(features, self.feature_loss, optimizer, steps=steps, batch_size=8)

        Parameters
        ----------
        normals : Normals
        extract : callable
            From a (B, 3, h, w) float32 batch in [0, 1] on the device to tensors whose first axis is B, of shapes that
            are the same for all inputs. It must neither learn nor draw random numbers. An input's features must not
            depend on the rest of its batch, for they are computed in other batches than those of the fit.

        Returns
        -------
        Batches of list of Tensor
            On the device; the same inputs in the same order as those of `normals`.
        """
        ...

    def train(
        self,
        normals: Batches[Batch],
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        batch_size: int,
        description: str = "fit",
    ) -> list[float]:
        """Run the one fit loop: `steps` times ``loss(batch)``, backward, step. Return the losses.

        ``loss`` gets (batch_size, 3, h, w) float32 in [0, 1] on the device, or a list of features where the first
        argument is what :meth:`features` returned, and returns a scalar. The loop shows progress, stops on a loss that
        is not finite, and continues an interrupted fit.
        """
        ...

    def track(self, inputs: Iterable[Batch], *, total: int, description: str = "fit") -> Iterable[Batch]:
        """Iterate over `inputs` under a progress bar, for methods that fit without gradients."""
        ...


class Method(nn.Module):
    """Base class of all methods.

    A subclass sets the class attributes, takes its options as keyword arguments with defaults, keeps
    everything it learns in its state dict (that is how it is saved) and sets ``requires_grad=False`` on
    frozen parts. Inputs are RGB in [0, 1]; normalisation belongs to the backbone.

    Attributes
    ----------
    title, paper : str
        Name for people; reference with its identifier.
    weights_licence : str
        Licence of the pretrained weights that it uses, for people to check before they ship.
    multiple : int
        Height and width of an input must be multiples of this.
    image_score : str
        The paper's rule from merged native map to image score: ``max``, ``mean`` or ``top:SHARE``.
    presets : dict of str to Preset
        At least ``paper``, ``native`` (tiled at camera pitch) and ``demo`` (small, for a CPU).
    inputs_per_image : sequence of int, optional
        While ``predict`` runs in the suite: for each input of the batch, how many inputs its image was cut into, those
        of all fused views together.
        Only for decisions whose false alarms are counted per image: what decides on n inputs by itself errs up to n
        times as often. None where an input is all there is.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    weights_licence: ClassVar[str] = "none"
    multiple: int = 1
    image_score: ClassVar[str] = "max"
    presets: ClassVar[Mapping[str, Preset]] = {}
    inputs_per_image: Sequence[int] | None = None

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Learn from normal images only."""
        raise NotImplementedError

    def predict(self, batch: Tensor) -> Prediction:
        """Score a (B, 3, h, w) float32 batch in [0, 1]; called in eval mode without gradients.

        Where a run is in bfloat16 (see :mod:`hrbench.precision`), this and the losses of a fit are called under
        autocast: convolutions and matrix products then give eight bits. What needs more, as likelihoods, distances to
        a memory, or the last layer before a map, belongs into :func:`hrbench.precision.full_precision`, its inputs
        made ``float()``.
        """
        raise NotImplementedError

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Combine the merged native maps of one view, each (H, W), into the (H, W) anomaly map."""
        (only,) = maps.values()
        return only

    def calibrate(self, maps: Iterable[dict[str, Tensor]]) -> None:
        """Look once, after ``fit``, at the merged native maps of held-out normal images.

        Where views are fused, an image's maps of every view come one after another, for ``finish`` must suit them all;
        scales that differ between views are evened out later (see :mod:`hrbench.fusion`).
        """

    def weights_record(self) -> dict[str, str]:
        """Return where the pretrained weights came from: ``{"backbone": "resnet18 random ...", ...}``."""
        return {name: str(module.provenance) for name, module in self.named_modules() if hasattr(module, "provenance")}


def list_methods() -> list[str]:
    """Return the names of all built-in and installed (entry point ``hrbench.methods``) methods."""
    built_in = {info.name for info in pkgutil.iter_modules(methods_package().__path__)}
    installed = {point.name for point in entry_points(group="hrbench.methods")}
    return sorted(name for name in built_in | installed if not name.startswith("_"))


def load_method(reference: str) -> type[Method]:
    """Find a method's class.

    Parameters
    ----------
    reference : str
        A name (:func:`list_methods`), a path to an adapter (``my/adapter.py``), or ``package.module:Class``.

    Raises
    ------
    HrbenchError
        For an unknown name, or a module without exactly one :class:`Method` of its own.
    """
    if reference.endswith(".py"):
        return _only_method(_import_path(Path(reference)), reference)
    if ":" in reference:
        module_name, _, class_name = reference.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise HrbenchError(f"method {reference!r}: {error}") from None
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise HrbenchError(f"method {reference!r}: not a subclass of hrbench.Method")
        return found
    package = methods_package()
    if not reference.startswith("_") and any(i.name == reference for i in pkgutil.iter_modules(package.__path__)):
        return _only_method(importlib.import_module(f"{package.__name__}.{reference}"), reference)
    for point in entry_points(group="hrbench.methods", name=reference):
        found = point.load()
        return found if isinstance(found, type) else _only_method(found, reference)
    raise unknown_name("method", reference, list_methods())


def create_method(name: str, **options: Any) -> Method:
    """Make a method by name.

    Parameters
    ----------
    name : str
        See :func:`load_method`.
    **options
        ``preset`` takes the options of one of the method's presets; every other keyword is an option of
        its constructor and wins over the preset.

    Examples
    --------
    >>> import hrbench
    >>> method = hrbench.create_method("fastflow", preset="demo", weights="random")
    """
    cls = load_method(name)
    preset = options.pop("preset", None)
    chosen = dict(find_preset(cls, name, preset).options) if preset is not None else {}
    return cls(**check_options(cls, name, {**chosen, **options}))


def find_preset(cls: type[Method], name: str, preset: str) -> Preset:
    """Return a preset of a method; an unknown one is an error that lists the known."""
    if preset not in cls.presets:
        raise unknown_name(f"preset of {name}", preset, cls.presets)
    return cls.presets[preset]


def check_options(cls: type[Method], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` as a dict; one that the constructor does not take, or of another type, is an error."""
    known = [key for key in inspect.signature(cls).parameters if key != "self"]
    hints = get_type_hints(cls.__init__)
    for key, value in options.items():
        if key not in known:
            raise unknown_name(f"option of {name}", key, known)
        if key in hints and not _fits(value, hints[key]):
            expected = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else None
            raise HrbenchError(f"option {key} of {name} is {value!r}, expected {expected or hints[key]}")
    return dict(options)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of an annotated type, for the types that options have; others pass."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True


def source_digest(cls: type[Method]) -> str:
    """Return the SHA-256 of the source that a method is made of: its module and the ``_*.py`` files beside it."""
    own = Path(inspect.getfile(cls))
    state = hashlib.sha256()
    for path in [own, *sorted(own.parent.glob("_*.py"))]:
        state.update(path.read_bytes())
    return state.hexdigest()


def all_options(cls: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complete configuration: `options` over the constructor's defaults."""
    bound = inspect.signature(cls).bind(**options)
    bound.apply_defaults()
    return dict(bound.arguments)


def _import_path(path: Path) -> Any:
    if not path.is_file():
        raise HrbenchError(f"method {str(path)!r}: no such file")
    name = f"hrbench_adapter_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HrbenchError(f"method {str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise HrbenchError(f"method {str(path)!r} cannot be imported: {error}") from None
    return module


def _only_method(module: Any, reference: str) -> type[Method]:
    own = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise HrbenchError(f"method {reference!r}: the module has {len(own)} Method classes, expected one")
    return own[0]
