"""Models of anomalib as methods: what they share, and a few lines for each.

anomalib (Apache-2.0, https://github.com/open-edge-platform/anomalib) is not installed with hrbench: ``pip install
'hrbench[anomalib]'``. Its networks, losses, optimisers and schedules are used as they are; images, fit loop, weights
and scores are the suite's. Nothing of it is imported before a model is made, for that takes seconds.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import timm
import torch
from timm.models import vision_transformer
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones.weights import Source
from hrbench.errors import HrbenchError, unknown_name
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights
from hrbench.precision import full_precision

from ._patch_features import batched
from ._schedule import Budget, clip_gradients

try:
    VERSION = importlib.metadata.version("anomalib")
except importlib.metadata.PackageNotFoundError:
    VERSION = "none"

_MANUAL = "it trains by a loop of its own (several optimisers by hand), which no fit can continue"
_DOWNLOADS = "its constructor downloads weights past hrbench's rules, which record where weights come from"
REFUSED = {
    "anomalib.anomalyvfm": f"{_DOWNLOADS}; its map is a probability, which saturates",
    "anomalib.cfa": f"{_DOWNLOADS}; it asks for the whole dataset before it trains",
    "anomalib.cflow": f"{_MANUAL}; its map subtracts the maximum of the batch, so that images of a batch mix",
    "anomalib.cfm": "it needs 3-D data",
    "anomalib.csflow": _DOWNLOADS,
    "anomalib.dfkde": "it scores images and gives no anomaly map",
    "anomalib.dsr": f"{_MANUAL}; it downloads weights when training begins",
    "anomalib.efficient_ad": "it downloads its teacher and 1.5 GB of Imagenette when training begins, for batches of 1",
    "anomalib.ganomaly": f"{_MANUAL}; it gives no anomaly map",
    "anomalib.glass": _MANUAL,
    "anomalib.mh_patchcore": "it needs several passes over the data, steered by anomalib's own trainer",
    "anomalib.super_add": "its only backbone (840 M parameters) comes under Meta's DINOv3 licence",
    "anomalib.uflow": "hrbench has it, checked against the authors' code: --methods uflow",
    "anomalib.uninet": f"{_DOWNLOADS}; it weighs an image's map by a softmax over the image",
    "anomalib.vlm_ad": "it asks a large language model and gives no anomaly map",
    "anomalib.winclip": "it needs the name of the class and open_clip's weights, which are downloaded past hrbench's rules",
}
"""Models of anomalib that are no methods, and why."""

_ITS_OWN = {
    "pre_processor",
    "post_processor",
    "evaluator",
    "visualizer",
    "pre_trained",
    "precision",
}  # the suite's part


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
    batch_size : int
        Inputs at a time while it is fitted.
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
        batch_size: int = 8,
        version: str = VERSION,
    ) -> None:
        super().__init__()
        models = _library(self.name, version)
        model = getattr(models, type(self).__name__)
        self.input_size = (input_size or self.sized) if self.sized else None
        self._batch_size = batch_size
        with _networks(weights) as made, _undone(vision_transformer, "resample_abs_pos_embed"):
            self.module = self._make(model, {**self._given(), **(arguments or {})})
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
        known = set(inspect.signature(model).parameters) - _ITS_OWN - self._given().keys()
        for key in arguments.keys() - known - self._given().keys():
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

    def _given(self) -> dict[str, Any]:
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
        for batch in batched(context.track(normals, total=len(normals)), self._batch_size, context.device):
            self.module.training_step(self._batch(batch), 0)
        greedy = importlib.import_module("anomalib.models.components.sampling.k_center_greedy")
        with _undone(greedy, "tqdm"):
            greedy.tqdm = lambda items, **_: context.track(items, total=len(items), description="coreset")
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
        super().__init__(arguments, weights, input_size, blur, batch_size, version)
        self._budget = Budget(self.name, batch_size, steps, epochs)

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
            found: Tensor = self.module.training_step(self._batch(batch), 0)["loss"]
            return found

        context.train(normals, loss, optimizer, steps=steps, batch_size=self._batch_size)


_RESNET = {"weights": "bundled", "arguments": {"backbone": "resnet18"}}
_BRIEF = {"steps": 100, "batch_size": 4}


def _small(**arguments: Any) -> dict[str, Any]:
    """Return options of a vision transformer that suits a CPU; none of this kind is bundled."""
    return {"weights": "random", "arguments": arguments, "steps": 200, "batch_size": 4}


class _AtStride(nn.Module):
    """In the place of PatchCore's upsampling and blur: the scores where they were computed."""

    def forward(self, scores: Tensor, size: object) -> Tensor:
        del size
        return scores


class Patchcore(Bridged):
    """Distances to a coreset of normal features, at their own stride unless they are blurred."""

    name = "anomalib.patchcore"
    title = "PatchCore (anomalib)"
    paper = "Roth et al., arXiv 2106.08265"
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset("whole:256"), "demo": Preset("whole:256", _RESNET)}

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator = _AtStride()


class Padim(Bridged):
    """A Gaussian for every position."""

    name = "anomalib.padim"
    title = "PaDiM (anomalib)"
    paper = "Defard et al., arXiv 2011.08785"
    sized, positional = 256, True
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset("whole:256"), "demo": Preset("whole:256", _RESNET)}


class AnomalyDINO(Bridged):
    """Distances to all normal patch tokens, at their own stride unless they are blurred."""

    name = "anomalib.anomaly_dino"
    title = "AnomalyDINO (anomalib)"
    paper = "Damm et al., arXiv 2405.14529"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:448"),
        "demo": Preset("whole:252", {"weights": "random", "arguments": {"coreset_subsampling": True}}),
    }

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator = _AtStride()


class Rad(Bridged):
    """Distances to the tokens of similar normal images, at nearby positions."""

    name = "anomalib.rad"
    title = "RAD (anomalib)"
    paper = "arXiv 2601.22763"
    sized, positional = 512, True
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:512"),
        "demo": Preset(
            "whole:224",
            {
                "weights": "bundled",
                "input_size": 224,
                "arguments": {"backbone": "vit_tiny_patch16_224", "layers": [2, 3, 4, 5]},
            },
        ),
    }


class Dfm(Bridged):
    """What a PCA of all of an image's features does not explain."""

    name = "anomalib.dfm"
    title = "DFM (anomalib)"
    paper = "Ahuja et al., arXiv 1909.11786"
    sized, positional, multiple = 256, True, 64
    presets: ClassVar[Mapping[str, Preset]] = {"paper": Preset("whole:256"), "demo": Preset("whole:256", _RESNET)}


class Fre(Trained):
    """What a linear autoencoder of all of an image's features does not rebuild."""

    name = "anomalib.fre"
    title = "FRE (anomalib)"
    paper = "Ndiour et al., arXiv 2211.12650"
    sized, positional = 256, True
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 220, "batch_size": 32}),
        "demo": Preset("whole:256", {**_RESNET, **_BRIEF, "arguments": {"backbone": "resnet18", "input_dim": 16384}}),
    }

    def _make(self, model: Any, arguments: dict[str, Any]) -> Any:
        module = super()._make(model, arguments)
        features = module.model.feature_extractor(torch.zeros(1, 3, self.input_size, self.input_size))
        (found,) = features.values()
        expected = functional.avg_pool2d(found, module.model.pooling_kernel_size).numel()
        given = module.model.fre_model.input_dim
        if given != expected:
            raise HrbenchError(f"argument input_dim of {self.name} is {given}, expected {expected} at this input_size")
        return module


class Stfpm(Trained):
    """A student learns the features of its teacher on normal images."""

    name = "anomalib.stfpm"
    title = "STFPM (anomalib)"
    paper = "Wang et al., arXiv 2103.04257"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 100, "batch_size": 32}),
        "native": Preset("tiled:512:128"),
        "demo": Preset("tiled:256:64", {**_RESNET, **_BRIEF}),
    }


class ReverseDistillation(Trained):
    """A decoder rebuilds the features of its teacher from a bottleneck."""

    name = "anomalib.reverse_distillation"
    title = "Reverse Distillation (anomalib)"
    paper = "Deng and Li, arXiv 2201.10703"
    sized = 256
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 200, "batch_size": 16}),
        "native": Preset("tiled:512:128", {"input_size": 512}),
        "demo": Preset("tiled:256:64", {**_RESNET, **_BRIEF}),
    }

    def _make(self, model: Any, arguments: dict[str, Any]) -> Any:
        if (mode := arguments.get("anomaly_map_mode")) is not None:  # anomalib wants its own enumeration
            modes = inspect.signature(model).parameters["anomaly_map_mode"].default.__class__
            if mode not in (names := [item.value for item in modes]):
                raise unknown_name(f"anomaly_map_mode of {self.name}", mode, names)
            arguments = {**arguments, "anomaly_map_mode": modes(mode)}
        return super()._make(model, arguments)

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator.kernel_size = 1  # its blur is made anew for every batch


class Fastflow(Trained):
    """Normalising flows on feature maps; the map is a likelihood, as published."""

    name = "anomalib.fastflow"
    title = "FastFlow (anomalib)"
    paper = "Yu et al., arXiv 2111.07677"
    sized = 256
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 500, "batch_size": 32}),
        "native": Preset("tiled:512:128", {"input_size": 512}),
        "demo": Preset("tiled:256:64", {**_RESNET, **_BRIEF}),
    }


class Patchflow(Trained):
    """A normalising flow on features of several scales; the map is a likelihood, as published."""

    name = "anomalib.patchflow"
    title = "PatchFlow (anomalib)"
    paper = "arXiv 2602.05238"
    sized = 768
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:768", {"steps": None, "epochs": 200, "batch_size": 32}),
        "native": Preset("tiled:512:128", {"input_size": 512}),
        "demo": Preset("tiled:256:64", {**_RESNET, **_BRIEF, "input_size": 256}),
    }


class Supersimplenet(Trained):
    """A discriminator of features and noisy features; the map is its logit."""

    name = "anomalib.supersimplenet"
    title = "SuperSimpleNet (anomalib)"
    paper = "Rolih et al., arXiv 2408.03143"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 300, "batch_size": 32}),
        "native": Preset("tiled:512:128"),
        "demo": Preset("tiled:256:64", {**_RESNET, **_BRIEF}),
    }

    def _map(self, images: Tensor) -> Tensor:
        model = self.module.model
        features = model.feature_extractor(images)
        adapted = model.adaptor(features)
        logits, _ = model.segdec(seg_features=adapted, cls_features=adapted if model.adapt_cls_features else features)
        found: Tensor = model.anomaly_map_generator(logits, final_size=images.shape[-2:])
        return found


class Draem(Trained):
    """An autoencoder and a discriminator trained on images with pasted textures; the map is a difference of logits.

    Parameters
    ----------
    arguments, input_size, blur, batch_size, steps, epochs, version
        As of :class:`Trained`. No network is pretrained.
    textures : str, optional
        Folder of images to paste, published: the Describable Textures Dataset. By default noise.
    """

    name = "anomalib.draem"
    title = "DRAEM (anomalib)"
    paper = "Zavrtanik et al., arXiv 2108.07610"
    weights_licence = "none"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:256", {"steps": None, "epochs": 700, "batch_size": 8}),
        "native": Preset("tiled:512:128"),
        "demo": Preset("tiled:256:64", _BRIEF),
    }

    def __init__(
        self,
        arguments: dict[str, Any] | None = None,
        textures: str | None = None,
        batch_size: int = 8,
        steps: int | None = 5000,
        epochs: int | None = None,
        version: str = VERSION,
    ) -> None:
        if textures is not None and not Path(textures).expanduser().is_dir():
            raise HrbenchError(f"textures of {self.name} is {textures!r}, expected a folder of images")
        with tempfile.TemporaryDirectory() as empty:  # else anomalib downloads 600 MB
            self._textures = str(Path(textures).expanduser()) if textures else empty
            super().__init__(arguments, batch_size=batch_size, steps=steps, epochs=epochs, version=version)

    def _given(self) -> dict[str, Any]:
        return {"dtd_dir": self._textures}

    def _map(self, images: Tensor) -> Tensor:
        model = self.module.model
        logits = model.discriminative_subnetwork(torch.cat([images, model.reconstructive_subnetwork(images)], dim=1))
        return logits[:, 1] - logits[:, 0]


class Dinomaly(Trained):
    """A decoder rebuilds groups of a transformer's layers through a noisy bottleneck."""

    name = "anomalib.dinomaly"
    title = "Dinomaly (anomalib)"
    paper = "Guo et al., arXiv 2405.14325"
    per_step = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:448"),
        "native": Preset("tiled:518:112"),
        "demo": Preset("tiled:252:56", _small(encoder_name="vit_small_patch14_dinov2")),
    }


class InpFormer(Trained):
    """A decoder rebuilds a transformer's tokens from prototypes that it draws from the image itself."""

    name = "anomalib.inp_former"
    title = "INP-Former (anomalib)"
    paper = "Luo et al., arXiv 2503.02424"
    sized, per_step = 448, True
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:448", {"steps": None, "epochs": 200}),
        "native": Preset("tiled:518:112", {"input_size": 518}),
        "demo": Preset("tiled:252:56", {**_small(encoder_name="vit_small_patch14_dinov2"), "input_size": 252}),
    }


class L2BT(Trained):
    """Two small networks translate between two layers of a transformer."""

    name = "anomalib.l2bt"
    title = "L2BT (anomalib)"
    paper = "Costanzino et al., arXiv 2407.04092"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:1036:square", {"steps": None, "epochs": 50, "batch_size": 4}),
        "native": Preset("tiled:518:112"),
        "demo": Preset("tiled:252:56", _small()),
    }

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator.blur_repeats_l = model.anomaly_map_generator.blur_repeats_u = 0


class GeneralAD(Trained):
    """A discriminator of a transformer's tokens and distorted ones; the map is its logit."""

    name = "anomalib.general_ad"
    title = "GeneralAD (anomalib)"
    paper = "Strater et al., arXiv 2407.12427"
    sized = 518
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:518", {"steps": None, "epochs": 160, "batch_size": 32}),
        "native": Preset("tiled:518:112"),
        "demo": Preset(
            "tiled:224:48",
            {
                **_BRIEF,
                "weights": "bundled",
                "input_size": 224,
                "arguments": {"backbone": "vit_tiny_patch16_224", "layers": [6], "hidden_dim": 256},
            },
        ),
    }


class FoundAD(Trained):
    """A projector brings a transformer's tokens, also those of pasted parts, to those of the normal image."""

    name = "anomalib.foundad"
    title = "FoundAD (anomalib)"
    paper = "Zhai et al., arXiv 2510.01934"
    sized = 518
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:518", {"steps": 2000, "batch_size": 4}),
        "native": Preset("tiled:518:112"),
        "demo": Preset("tiled:252:56", {**_small(encoder_name="dinov2_vit_small_14"), "input_size": 252}),
    }

    def _given(self) -> dict[str, Any]:
        return {"image_size": self.input_size}


def _library(name: str, version: str) -> Any:
    """Return ``anomalib.models`` of a version."""
    remedy = "pip install 'hrbench[anomalib]', and torchvision of the same kind of build as torch"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of anomalib about itself
            models = importlib.import_module("anomalib.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build
        raise HrbenchError(f"{name} needs anomalib, which cannot be imported ({error}): {remedy}") from None
    if version != VERSION:
        raise HrbenchError(f"version of {name} is {version!r}, expected that of the installed anomalib, {VERSION!r}")
    return models


@contextmanager
def _undone(owner: Any, name: str) -> Iterator[None]:
    """Put an attribute of a library back, whatever it is set to in a block."""
    before = getattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _networks(weights: str) -> Iterator[list[tuple[Any, Source]]]:
    """Let a block that asks timm for pretrained networks get frozen ones, filled as hrbench does; yield them."""
    create, made = timm.create_model, []

    def frozen(model: str, *, pretrained: bool = False, **options: Any) -> Any:
        if not pretrained:
            return create(model, **options)
        source = Source.of(model, weights)
        headless = {} if options.get("features_only") else {"num_classes": 0}
        network = create(source.model, **options, **headless, **source.options).requires_grad_(False).eval()
        network.provenance = source.fill(network)
        made.append((network, source))
        return network

    with _undone(timm, "create_model"):
        timm.create_model = frozen
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
