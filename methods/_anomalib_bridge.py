"""What models of anomalib share as methods: :mod:`hrbench.methods._anomalib` has a class for each of them.

anomalib's networks, losses, optimisers and schedules are used as they are; images, fit loop, weights and scores are
the suite's. Nothing of it is imported before a model is made, for that takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import timm
import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from hrbench.backbones.weights import Source
from hrbench.errors import HrbenchError, unknown_name
from hrbench.method import FitContext, Method, Normals, Prediction, Weights
from hrbench.precision import full_precision

from ._schedule import Budget, clip_gradients

try:
    VERSION = importlib.metadata.version("anomalib")
except importlib.metadata.PackageNotFoundError:
    VERSION = "none"

# What the suite decides in the place of anomalib.
_NOT_ASKED = {"pre_processor", "post_processor", "evaluator", "visualizer", "pre_trained", "precision"}


class Bridged(Method):
    """A model of anomalib that collects features in one pass, and fits a memory bank or Gaussians to them.

    Parameters
    ----------
    arguments : dict of str to object, optional
        Keyword arguments of anomalib's class, for example ``{"backbone": "resnet18"}``.
    weights : str
        Of its frozen network: ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    input_size : int, optional
        Height and width of the input in pixels, where the model is made for one size; by default the published one.
    blur : bool
        Keep anomalib's blur of the map, where there is one; it destroys tiny defects.
    version : str
        Of anomalib: it identifies the run, and must be the installed one.
    """

    weights_licence = "bundled: Apache-2.0; DINOv2: Apache-2.0; DINOv3: Meta's DINOv3 licence; others: see timm"
    name: ClassVar[str] = ""
    sized: ClassVar[int | None] = None  # published input size, where the model is made or fitted for one size
    positional: ClassVar[bool] = False  # what it learns belongs to positions of the image
    multiple = 32

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arguments: dict[str, Any] | None = None,
        weights: Weights = "pretrained",
        input_size: int | None = None,
        blur: bool = False,
        version: str = VERSION,
    ) -> None:
        super().__init__()
        models = _library(self.name, version)
        model = getattr(models, type(self).__name__)
        self.input_size = (input_size or self.sized) if self.sized else None
        # anomalib changes how all of timm's transformers resample positions.
        with _networks(weights) as made, _replaced(vision_transformer, "resample_abs_pos_embed"):
            self.module = self._make(model, {**self._implied(), **(arguments or {})})
        if (parts := self.module._modules.pop("trainable_modules", None)) is not None:
            object.__setattr__(self.module, "trainable_modules", parts)  # parts of the model, not to be saved twice
        self.frozen = [network for network, _ in made]
        for network in self.frozen:
            if hasattr(network, "patch_embed"):
                self.multiple = int(network.patch_embed.patch_size[0])
        if self.input_size and self.input_size % self.multiple:
            raise HrbenchError(f"input_size {self.input_size} of {self.name}: expected a multiple of {self.multiple}")
        mean, std = _normalisation(self.module) if weights != "bundled" or not made else made[0][1].normalisation()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.module.log = self.module.log_dict = lambda *_, **__: None  # there is no trainer to log to
        if not blur:
            self._sharpen(self.module.model)

    def _make(self, model: Any, arguments: dict[str, Any]) -> Any:
        """Return anomalib's module; what it says of wrong arguments becomes one error."""
        known = set(inspect.signature(model).parameters) - _NOT_ASKED - self._implied().keys()
        for key in arguments.keys() - known - self._implied().keys():
            raise unknown_name(f"argument of {self.name}", key, known)
        size, processor = (self.input_size,) * 2, True
        if self.input_size:
            sizes = {"image_size": size, "crop_size": self.input_size}
            takes = inspect.signature(model.configure_pre_processor).parameters
            processor = model.configure_pre_processor(**{key: sizes[key] for key in sizes.keys() & takes.keys()})
        off = dict.fromkeys(("post_processor", "evaluator", "visualizer"), False)
        try:
            return model(pre_processor=processor, **off, **arguments)
        except HrbenchError:
            raise
        except Exception as error:  # anomalib and timm raise a dozen kinds for arguments that do not fit
            raise HrbenchError(f"{self.name} cannot be made with arguments {arguments}: {error}") from error

    def _implied(self) -> dict[str, Any]:
        """Return arguments of anomalib's class that follow from options of this one."""
        return {}

    def _sharpen(self, model: Any) -> None:
        """Take the blur of maps out."""
        for part in list(model.modules()):
            for name, child in part.named_children():
                if type(child).__name__ == "GaussianBlur2d":
                    setattr(part, name, nn.Identity())

    def train(self, mode: bool = True) -> Bridged:
        """Let frozen networks stay in eval mode: their running statistics must not move."""
        super().train(mode)
        for network in self.frozen:
            network.eval()
        return self

    @torch.no_grad()
    def fit(self, normals: Normals, context: FitContext) -> None:
        """Collect the features of the normal images, and fit to them."""
        self.module.to(context.device)
        for item in context.track(normals, total=len(normals)):
            self.module.training_step(self._batch(item[None].to(context.device)), 0)

        def shown(items: range, **_: Any) -> Iterable[Any]:
            return context.track(items, total=len(items), description="coreset")

        with _replaced(importlib.import_module("anomalib.models.components.sampling.k_center_greedy"), "tqdm", shown):
            self.module.fit()
        for part in self.module.modules():  # other strides, as after saving and loading, would change the last bits
            for key, buffer in part.named_buffers(recurse=False):
                setattr(part, key, buffer.contiguous())

    def predict(self, batch: Tensor) -> Prediction:
        """Return the model's map, before any normalisation or threshold."""
        with full_precision(batch.device):
            found = self._map(self._normalised(batch))
        if found is None:
            raise HrbenchError(f"{self.name} gives no anomaly map with these arguments, only scores of images")
        return Prediction({"anomaly": found.float().reshape(len(batch), *found.shape[-2:])})

    def predict_inputs(self, batch: Tensor, inputs_per_image: Sequence[int]) -> Prediction:
        """Refuse tiles where what was learnt belongs to positions of the image."""
        if self.positional and max(inputs_per_image) > 1:
            raise HrbenchError(
                f"{self.name}: it learns each position of the image, expected images seen whole, for example "
                f"--view whole:{self.input_size}"
            )
        return self.predict(batch)

    def _map(self, images: Tensor) -> Tensor | None:
        found: Tensor | None = self.module.model(images).anomaly_map
        return found

    def _normalised(self, batch: Tensor) -> Tensor:
        return (batch.float() - self.mean) / self.std

    def _batch(self, images: Tensor) -> Any:
        """Return normal images as anomalib's steps take them."""
        none = images.new_zeros((len(images), *images.shape[-2:]), dtype=torch.bool)
        data = importlib.import_module("anomalib.data")
        return data.ImageBatch(image=self._normalised(images), gt_label=none[:, 0, 0], gt_mask=none)


class Trained(Bridged):
    """A model of anomalib that is trained by a loss.

    Parameters
    ----------
    arguments, weights, input_size, blur, version
        As of :class:`Bridged`.
    batch_size : int
        Inputs per training step.
    steps : int, optional
        Training steps.
    epochs : int, optional
        Passes over the training inputs, instead of `steps`; an incomplete last batch does not count.
    """

    per_step: ClassVar[bool] = False  # whether its schedule counts steps, not epochs
    precise: ClassVar[bool] = False  # whether its loss is computed in float32 in a run in bfloat16, too

    def __init__(
        self,
        arguments: dict[str, Any] | None = None,
        weights: Weights = "pretrained",
        input_size: int | None = None,
        blur: bool = False,
        batch_size: int = 16,
        steps: int | None = 5000,
        epochs: int | None = None,
        version: str = VERSION,
    ) -> None:
        super().__init__(arguments, weights, input_size, blur, version)
        self._budget, self._batch_size = Budget(self.name, batch_size, steps, epochs), batch_size

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Train as anomalib would: its loss, optimiser and schedule, and its trainer's clipping of gradients."""
        steps, per_epoch = self._budget.of(len(normals)), max(1, len(normals) // self._batch_size)
        trainer = SimpleNamespace(
            global_step=0,
            current_epoch=0,
            max_steps=steps,
            max_epochs=math.ceil(steps / per_epoch),
            datamodule=SimpleNamespace(train_dataloader=lambda: range(per_epoch)),
        )
        self.module.to(context.device)
        self.module.trainer = trainer
        optimizer, schedule = _optimizer(self.module.configure_optimizers())
        unit = 1 if self.per_step else per_epoch
        rates = _rates(optimizer, schedule, math.ceil(steps / unit))
        if norm := self.module.trainer_arguments.get("gradient_clip_val"):
            clip_gradients(optimizer, norm)

        def loss(batch: Tensor) -> Tensor:
            # Steps are counted by the optimiser, whose state a fit that is continued has back.
            taken = int(next((state["step"] for state in optimizer.state.values() if "step" in state), 0))
            trainer.global_step, trainer.current_epoch = taken, taken // per_epoch
            for group, rate in zip(optimizer.param_groups, rates[taken // unit], strict=True):
                group["lr"] = rate
            with full_precision(batch.device) if self.precise else nullcontext():
                found: Tensor = self.module.training_step(self._batch(batch), 0)["loss"]
            return found

        context.train(normals, loss, optimizer, steps=steps, batch_size=self._batch_size)


def _library(name: str, version: str) -> Any:
    """Return ``anomalib.models`` of a version."""
    remedy = "pip install 'hrbench[anomalib]', and torchvision of the same kind of build as torch"
    environment = dict(os.environ)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of anomalib about itself
            models = importlib.import_module("anomalib.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build
        raise HrbenchError(f"{name} needs anomalib, which cannot be imported ({error}): {remedy}") from None
    finally:  # OpenCV and Lightning set variables
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
    if version != VERSION:
        raise HrbenchError(f"version of {name} is {version!r}, expected that of the installed anomalib, {VERSION!r}")
    return models


@contextmanager
def _replaced(owner: Any, name: str, value: Any = None) -> Iterator[None]:
    """Set an attribute of a library in a block, or let the block do so, and put it back."""
    before = getattr(owner, name)
    setattr(owner, name, before if value is None else value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _networks(weights: str) -> Iterator[list[tuple[Any, Source]]]:
    """Let a block that asks timm for pretrained networks get frozen ones, filled as hrbench does; yield them."""
    create: Any = timm.create_model
    made: list[tuple[Any, Source]] = []

    def frozen(model: str, *, pretrained: bool = False, **options: Any) -> Any:
        if not pretrained:
            return create(model, **options)
        source = Source.of(model, weights)
        headless = {} if options.get("features_only") else {"num_classes": 0}
        network = create(source.model, **{**options, **headless, **source.options}).requires_grad_(False).eval()
        network.provenance = source.fill(network)
        made.append((network, source))
        return network

    with _replaced(timm, "create_model", frozen):
        yield made


def _normalisation(module: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation that anomalib takes from its input."""
    for step in module.pre_processor.transform.transforms:
        if type(step).__name__ == "Normalize":
            return step.mean, step.std
    return (0.0,), (1.0,)


def _optimizer(configured: Any) -> tuple[torch.optim.Optimizer, Any]:
    """Return the optimiser and, or None, the schedule of what Lightning's ``configure_optimizers`` gave."""
    if isinstance(configured, dict):
        return configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    if isinstance(configured, torch.optim.Optimizer):
        return configured, None
    (optimizer,), (schedule,) = configured
    return optimizer, schedule


def _rates(optimizer: torch.optim.Optimizer, schedule: Any, number: int) -> list[list[float]]:
    """Return the learning rates of all groups, one list for each of the next so many steps of a schedule."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the optimiser has not stepped
        for _ in range(number):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            if schedule is not None:
                schedule.step()
    return rates
