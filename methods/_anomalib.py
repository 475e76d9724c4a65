"""Models of anomalib as methods, and why its other ones are none.

anomalib (Apache-2.0, https://github.com/open-edge-platform/anomalib) is not installed with hrbench: ``pip install
'hrbench[anomalib]'``. What its models share is in :mod:`hrbench.methods._anomalib_bridge`.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.errors import HrbenchError, unknown_name
from hrbench.method import Preset

from ._anomalib_bridge import VERSION, Bridged, Trained

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
    "anomalib.super_add": "it was not tried: its backbone has 840 M parameters and Meta's DINOv3 licence",
    "anomalib.uflow": "its two CaiT are slow; hrbench's own is checked against the authors' code: --methods uflow",
    "anomalib.uninet": f"{_DOWNLOADS}; it weighs an image's map by a softmax over the image",
    "anomalib.vlm_ad": "it asks a large language model and gives no anomaly map",
    "anomalib.winclip": "it needs the name of the class; it downloads open_clip's weights past hrbench's rules",
}
"""Models of anomalib that are no methods, and why."""

_RESNET: Mapping[str, Any] = {"weights": "bundled", "arguments": {"backbone": "resnet18"}}
_BRIEF: Mapping[str, Any] = {**_RESNET, "steps": 100, "batch_size": 4}


def _epochs(number: int, batch_size: int) -> dict[str, Any]:
    return {"steps": None, "epochs": number, "batch_size": batch_size}


def _small(**options: Any) -> dict[str, Any]:
    """Return options that suit a CPU, of a transformer of a kind that is not bundled."""
    return {"weights": "random", "steps": 200, "batch_size": 4, **options}


def _presets(paper: Preset, demo: Preset, native: Preset | None = None) -> dict[str, Preset]:
    return {"paper": paper, **({"native": native} if native else {}), "demo": demo}


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
    _fine = {"backbone": "resnet18", "layers": ["layer1", "layer2"], "coreset_sampling_ratio": 0.01}  # noqa: RUF012
    presets = _presets(Preset("whole:256"), Preset("whole:256", {"weights": "bundled", "arguments": _fine}))

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator = _AtStride()


class Padim(Bridged):
    """A Gaussian for every position."""

    name = "anomalib.padim"
    title = "PaDiM (anomalib)"
    paper = "Defard et al., arXiv 2011.08785"
    sized, positional = 256, True
    presets = _presets(Preset("whole:256"), Preset("whole:256", _RESNET))


class AnomalyDINO(Bridged):
    """Distances to all normal patch tokens, at their own stride unless they are blurred."""

    name = "anomalib.anomaly_dino"
    title = "AnomalyDINO (anomalib)"
    paper = "Damm et al., arXiv 2405.14529"
    presets = _presets(Preset("whole:448"), Preset("whole:252", {"weights": "random"}))

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator = _AtStride()


class Rad(Bridged):
    """Distances to the tokens of similar normal images, at nearby positions."""

    name = "anomalib.rad"
    title = "RAD (anomalib)"
    paper = "arXiv 2601.22763"
    sized, positional = 512, True
    _tiny = {"backbone": "vit_tiny_patch16_224", "layers": [2, 3, 4, 5]}  # noqa: RUF012
    presets = _presets(
        Preset("whole:512"), Preset("whole:224", {"weights": "bundled", "input_size": 224, "arguments": _tiny})
    )


class Dfm(Bridged):
    """What a PCA of all of an image's features does not explain."""

    name = "anomalib.dfm"
    title = "DFM (anomalib)"
    paper = "Ahuja et al., arXiv 1909.11786"
    sized, positional, multiple = 256, True, 64
    presets = _presets(Preset("whole:256"), Preset("whole:256", _RESNET))


class Fre(Trained):
    """What a linear autoencoder of all of an image's features does not rebuild."""

    name = "anomalib.fre"
    title = "FRE (anomalib)"
    paper = "Ndiour et al., arXiv 2211.12650"
    sized, positional = 256, True
    presets = _presets(
        Preset("whole:256", _epochs(220, 32)),
        Preset("whole:256", {**_BRIEF, "arguments": {"backbone": "resnet18", "input_dim": 16384}}),
    )

    def _make(self, model: Any, arguments: dict[str, Any]) -> Any:
        module = super()._make(model, arguments)
        size = self.input_size or 0
        (found,) = module.model.feature_extractor(torch.zeros(1, 3, size, size)).values()
        expected = functional.avg_pool2d(found, module.model.pooling_kernel_size).numel()
        given = module.model.fre_model.input_dim
        if given != expected:
            raise HrbenchError(
                f"argument input_dim of {self.name} is {given}, expected {expected} at input_size {size}"
            )
        return module


class Stfpm(Trained):
    """A student learns the features of its teacher on normal images."""

    name = "anomalib.stfpm"
    title = "STFPM (anomalib)"
    paper = "Wang et al., arXiv 2103.04257"
    presets = _presets(Preset("whole:256", _epochs(100, 32)), Preset("tiled:256:64", _BRIEF), Preset("tiled:512:128"))


class ReverseDistillation(Trained):
    """A decoder rebuilds the features of its teacher from a bottleneck."""

    name = "anomalib.reverse_distillation"
    title = "Reverse Distillation (anomalib)"
    paper = "Deng and Li, arXiv 2201.10703"
    sized = 256
    presets = _presets(
        Preset("whole:256", _epochs(200, 16)),
        Preset("tiled:256:64", _BRIEF),
        Preset("tiled:512:128", {"input_size": 512}),
    )

    def _make(self, model: Any, arguments: dict[str, Any]) -> Any:
        if (mode := arguments.get("anomaly_map_mode")) is not None:  # anomalib takes its own enumeration only
            modes = type(inspect.signature(model).parameters["anomaly_map_mode"].default)
            if mode not in (known := [item.value for item in modes]):
                raise unknown_name(f"anomaly_map_mode of {self.name}", mode, known)
            arguments = {**arguments, "anomaly_map_mode": modes(mode)}
        return super()._make(model, arguments)

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator.kernel_size = 1  # the blur is made anew for every batch


class Fastflow(Trained):
    """Normalising flows on feature maps; the map is a likelihood, as published."""

    name = "anomalib.fastflow"
    title = "FastFlow (anomalib)"
    paper = "Yu et al., arXiv 2111.07677"
    sized, precise = 256, True
    presets = _presets(
        Preset("whole:256", _epochs(500, 32)),
        Preset("tiled:256:64", _BRIEF),
        Preset("tiled:512:128", {"input_size": 512}),
    )


class Patchflow(Trained):
    """A normalising flow on features of several scales; the map is a likelihood, as published."""

    name = "anomalib.patchflow"
    title = "PatchFlow (anomalib)"
    paper = "arXiv 2602.05238"
    sized, precise = 768, True
    presets = _presets(
        Preset("whole:768", _epochs(200, 32)),
        Preset("tiled:256:64", {**_BRIEF, "weights": "random", "input_size": 256}),  # no bundled one reaches stride 32
        Preset("tiled:512:128", {"input_size": 512}),
    )


class Supersimplenet(Trained):
    """A discriminator of features and noisy features; the map is its logit."""

    name = "anomalib.supersimplenet"
    title = "SuperSimpleNet (anomalib)"
    paper = "Rolih et al., arXiv 2408.03143"
    presets = _presets(Preset("whole:256", _epochs(300, 32)), Preset("tiled:256:64", _BRIEF), Preset("tiled:512:128"))

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
    arguments, batch_size, steps, epochs, version
        As of :class:`Trained`. No network is pretrained.
    textures : str, optional
        Folder of images to paste; published: the Describable Textures Dataset. By default noise.
    """

    name = "anomalib.draem"
    title = "DRAEM (anomalib)"
    paper = "Zavrtanik et al., arXiv 2108.07610"
    weights_licence = "none"
    presets = _presets(
        Preset("whole:256", _epochs(700, 8)),
        Preset("tiled:128:32", {"steps": 20, "batch_size": 2}),
        Preset("tiled:512:128"),
    )

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
        with tempfile.TemporaryDirectory() as empty:  # without a folder anomalib downloads 600 MB
            self._textures = str(Path(textures).expanduser()) if textures else empty
            super().__init__(arguments, batch_size=batch_size, steps=steps, epochs=epochs, version=version)

    def _implied(self) -> dict[str, Any]:
        return {"dtd_dir": self._textures}

    def _map(self, images: Tensor) -> Tensor:
        model = self.module.model
        found: Tensor = model.discriminative_subnetwork(
            torch.cat([images, model.reconstructive_subnetwork(images)], dim=1)
        )
        return found[:, 1] - found[:, 0]


class Dinomaly(Trained):
    """A decoder rebuilds groups of a transformer's layers through a noisy bottleneck."""

    name = "anomalib.dinomaly"
    title = "Dinomaly (anomalib)"
    paper = "Guo et al., arXiv 2405.14325"
    per_step = True
    presets = _presets(
        Preset("whole:448"),
        Preset("tiled:252:56", _small(arguments={"encoder_name": "vit_small_patch14_dinov2"})),
        Preset("tiled:518:112"),
    )


class InpFormer(Trained):
    """A decoder rebuilds a transformer's tokens from prototypes that it draws from the image itself."""

    name = "anomalib.inp_former"
    title = "INP-Former (anomalib)"
    paper = "Luo et al., arXiv 2503.02424"
    sized, per_step, precise = 448, True, True  # its hooks on gradients are of float32
    presets = _presets(
        Preset("whole:448", _epochs(200, 16)),
        Preset("tiled:252:56", _small(arguments={"encoder_name": "vit_small_patch14_dinov2"}, input_size=252)),
        Preset("tiled:518:112", {"input_size": 518}),
    )


class L2BT(Trained):
    """Two small networks translate between two layers of a transformer."""

    name = "anomalib.l2bt"
    title = "L2BT (anomalib)"
    paper = "Costanzino et al., arXiv 2407.04092"
    presets = _presets(
        Preset("whole:1036:square", _epochs(50, 4)), Preset("tiled:252:56", _small()), Preset("tiled:518:112")
    )

    def _sharpen(self, model: Any) -> None:
        model.anomaly_map_generator.blur_repeats_l = model.anomaly_map_generator.blur_repeats_u = 0


class GeneralAD(Trained):
    """A discriminator of a transformer's tokens and distorted ones; the map is its logit."""

    name = "anomalib.general_ad"
    title = "GeneralAD (anomalib)"
    paper = "Sträter et al., arXiv 2407.12427"
    sized = 518
    _tiny = {"backbone": "vit_tiny_patch16_224", "layers": [6], "hidden_dim": 256}  # noqa: RUF012
    presets = _presets(
        Preset("whole:518", _epochs(160, 32)),
        Preset("tiled:224:48", {**_BRIEF, "input_size": 224, "arguments": _tiny}),
        Preset("tiled:518:112"),
    )


class FoundAD(Trained):
    """A projector brings a transformer's tokens, also those of pasted parts, to those of the normal image."""

    name = "anomalib.foundad"
    title = "FoundAD (anomalib)"
    paper = "Zhai et al., arXiv 2510.01934"
    sized = 518
    presets = _presets(
        Preset("whole:518", {"steps": 2000, "batch_size": 4}),
        Preset("tiled:252:56", _small(arguments={"encoder_name": "dinov2_vit_small_14"}, input_size=252)),
        Preset("tiled:518:112"),
    )

    def _implied(self) -> dict[str, Any]:
        return {"image_size": self.input_size}
