"""The contract of a method.

A method is one file: a :class:`Method` subclass with ``fit`` and ``predict``. Decoding, tiling, blending,
batching, checkpoints, scoring and recording are the suite's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["BY_CONTENT", "Batches", "FitContext", "Method", "Normals", "OnHost", "Prediction", "Preset", "Weights"]

Batch = TypeVar("Batch", Tensor, list[Tensor])
Batch_co = TypeVar("Batch_co", covariant=True)

BY_CONTENT = "a file that is named counts by its content"
Weights = Annotated[str, BY_CONTENT]
"""Type of options that say where weights come from: ``pretrained``, ``bundled``, ``random`` or the path of a file.

A run is identified, and recorded, by what is in the file and not by where it lies. Any other text is taken literally.
"""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named configuration of a method.

    Attributes
    ----------
    view : str
        How images are looked at, for example ``tiled:512:128`` (see :mod:`hrbench.engine.views`).
    options : Mapping
        Keyword arguments of the method's constructor.
    """

    view: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OnHost:
    """A decision of which the host computes a part, while a GPU goes on with the next batches.

    Attributes
    ----------
    given : tuple of Tensor
        On the device: what the host needs, the batch as first axis or not.
    compute : callable
        From `given`, in the host's memory, to tensors there. It is called in a thread beside others and beside the
        method's own calls, so it must not change, draw or keep anything, and it should leave Python's lock to others.
    complete : callable
        From these tensors, back on the device, to the decision, (B, h', w') bool.
    """

    given: tuple[Tensor, ...]
    compute: Callable[[list[Tensor]], Sequence[Tensor]]
    complete: Callable[[list[Tensor]], Tensor]

    def now(self) -> Tensor:
        """Wait for the decision."""
        device = self.given[0].device
        found = self.compute([tensor.cpu() for tensor in self.given])
        return self.complete([tensor.to(device, non_blocking=True) for tensor in found])


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says of a batch.

    Attributes
    ----------
    maps : dict of str to Tensor
        One or more named (B, h', w') float32 anomaly maps at any stride. Higher is more anomalous, the
        scale is free; a map should not saturate, for ties among strong anomalies cost rank metrics.
    decision : Tensor, OnHost or None
        (B, h', w') bool, where the method has a threshold of its own; or how the host makes it.
    """

    maps: dict[str, Tensor]
    decision: Tensor | OnHost | None = None

    def decided(self) -> Tensor | None:
        """Return the decision, if need be after waiting for the host."""
        return self.decision.now() if isinstance(self.decision, OnHost) else self.decision


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
        Normal training images that `normals` does not contain, for stopping rules and scales. Asking for them is an
        error where none are held out (``--held-out 0``), so a fit asks first, and only if its options need them.
    """

    @property
    def seed(self) -> int: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def held_out(self) -> Normals: ...  # noqa: D102

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> Batches[list[Tensor]]:
        """Return the features of `normals`, computed once and kept where memory (a GPU's first) or disk allows.

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
        is not finite, and continues an interrupted fit: calls that were over return at once and leave method, optimizer
        and torch's generator as they did then. What each call leaves is kept on disk until the fit is over.
        """
        ...

    def track(self, inputs: Iterable[Batch], *, total: int, description: str = "fit") -> Iterable[Batch]:
        """Iterate over `inputs` under a progress bar, for methods that fit without gradients."""
        ...


class Method(nn.Module):
    """Base class of all methods.

    A subclass sets the class attributes, keeps everything it learns in its state dict (that is how it is saved, see
    :meth:`restored`) and sets ``requires_grad=False`` on frozen parts. Inputs are RGB in [0, 1]; normalisation belongs
    to the backbone.

    Methods share a process: what a call of a method changes of torch's settings (default dtype, threads, precision,
    grad mode ...) or the current folder is put back when it returns. What a call needs it sets itself.

    Its options are keyword arguments with defaults and annotations. The suite checks the types of what users give,
    choices too where they are annotated as ``Literal["a", "b"]``; ranges are the method's to check. Options that may
    name a file of weights are annotated as :data:`Weights`; the one that is called ``weights`` is shown in tables.

    Attributes
    ----------
    title, paper : str
        Name for people; reference with its identifier.
    weights_licence : str
        Licence of the pretrained weights that it uses, for people to check before they ship.
    multiple : int
        Height and width of an input must be multiples of this.
    input_size : int, optional
        The only height and width of an input, where something in the method is tied to it. By default any multiple.
    finish_padded : bool
        Where a view pads images to a square (``whole:SIZE:square``), `finish` and `calibrate` get the maps of the whole
        square, still in native pixels, and what `finish` returns is cropped to the image. By default they get the
        image's part.
    image_score : str
        The paper's rule from merged native map to image score: ``max``, ``mean`` or ``top:SHARE``.
    presets : dict of str to Preset
        At least ``paper``, ``native`` (tiled at camera pitch) and ``demo`` (small, for a CPU).
    not_exported : str
        Why the method cannot be exported; empty where it may be. A property, where options decide.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    weights_licence: ClassVar[str] = "none"
    multiple: int = 1
    input_size: int | None = None
    finish_padded: bool = False
    image_score: ClassVar[str] = "max"
    presets: ClassVar[Mapping[str, Preset]] = {}
    not_exported: str = ""

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

    def predict_inputs(self, batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        """Score a batch whose inputs are parts of images: what the suite calls, and by default :meth:`predict`.

        To be overridden only by methods whose decisions bound the false alarms per image: what decides on n inputs by
        itself errs up to n times as often.

        Parameters
        ----------
        batch : Tensor
            As for :meth:`predict`.
        inputs_per_image : sequence of int
            For each input of the batch, how many inputs its image was cut into, those of all fused views together.
        """
        del inputs_per_image
        return self.predict(batch)

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Combine the merged native maps of one view, each (H, W), into the (H, W) anomaly map.

        With `finish_padded` H and W are those of the padded square, if the view makes one.
        """
        (only,) = maps.values()
        return only

    def calibrate(self, maps: Iterable[dict[str, Tensor]]) -> None:
        """Look once, after ``fit``, at the merged native maps of held-out normal images.

        It is not called where none are held out (``--held-out 0``): a map must not need it to rank.
        Where views are fused, an image's maps of every view come one after another, for ``finish`` must suit them all;
        scales that differ between views are evened out later (see :mod:`hrbench.engine.fusion`).
        """

    def exported_maps(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the maps of :meth:`predict`: what ``hrbench export`` makes a graph of, for one input at a time.

        To be overridden where `predict` does something besides that no graph can hold, as a decision on the host.
        ``finish`` becomes a graph of its own.
        """
        return self.predict_inputs(batch, [1] * len(batch)).maps

    def restored(self) -> dict[str, str]:
        """Return the submodules that are not saved, for they are restored when the method is made, and from where.

        By default those with an attribute ``provenance``, as :mod:`hrbench.backbones` gives its frozen extractors. They
        must not learn: what they learnt would be lost.

        Returns
        -------
        dict of str to str
            Name of the submodule to model, source and digest: ``{"backbone": "resnet18 bundled sha256:..."}``.
        """
        modules = ((name, getattr(module, "provenance", None)) for name, module in self.named_modules() if name)
        return {name: str(provenance) for name, provenance in modules if provenance is not None}

    def weights_record(self) -> dict[str, str]:
        """Return where pretrained weights came from, learnt further or not; by default those :meth:`restored`."""
        return self.restored()
