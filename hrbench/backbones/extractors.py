"""Frozen feature extractors from timm, and where their weights come from.

Two kinds: :func:`load_pyramid` for multi-scale maps of any ``features_only`` model, :func:`load_tokens` for
the patch tokens of a vision transformer. Both take RGB in [0, 1], normalise inside, stay in eval mode,
need no gradients, and say in `provenance` where their weights came from. :func:`load_transformer` is for
methods that train the transformer further: it freezes nothing.

Weights are one of

``pretrained``
    a file named after the model in the weights folder (``$HRBENCH_WEIGHTS``, else
    ``~/.cache/hrbench/weights``), else the copy in the caches of huggingface_hub and torch.hub, else a
    download from the hub;
``bundled``
    weights that come with this package, made from formulas alone (no photographs, no download), for the
    architectures that :func:`bundled_models` lists; a tag in the model's name does not matter;
``random``
    the model's own initialisation from torch's global generator, which the suite seeds;
a path
    to a ``.safetensors``, ``.pth`` or ``.pt`` state dict, never unpickled.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.cait import Cait
from torch import Tensor, nn

from hrbench.backbones.weights import Source
from hrbench.errors import HrbenchError

__all__ = [
    "FeaturePyramid",
    "PatchTokens",
    "compile_frozen",
    "level_indices",
    "load_pyramid",
    "load_tokens",
    "load_transformer",
    "token_depth",
]

log = logging.getLogger("hrbench")


class _Frozen(nn.Module):
    """A pretrained network that neither learns nor leaves eval mode, with its input normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, source: Source) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.provenance = source.fill(network)
        mean, std = source.normalisation()
        # Not in the state dict: the weights' name determines them.
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.training = False

    def train(self, mode: bool = True) -> _Frozen:
        """Stay in eval mode: running statistics and dropout of a frozen network must not move."""
        del mode
        super().train(False)
        return self

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class FeaturePyramid(_Frozen):
    """Feature maps of a convolutional (or hierarchical) network at several scales.

    Attributes
    ----------
    channels, strides : tuple of int
        Of each map, finest first as in `out_indices`; strides are in input pixels.
    provenance : str
        Model, source and digest of the weights. A method does not save what has it (``Method.restored``).
    """

    def __init__(self, network: nn.Module, source: Source) -> None:
        super().__init__(network, source)
        info: Any = network.feature_info
        self.channels: tuple[int, ...] = tuple(info.channels())
        self.strides: tuple[int, ...] = tuple(info.reduction())
        self._channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        # Pixels with their channels side by side suit convolutions (a ResNet18 on a CPU takes two thirds of the time),
        # but not the layer norms of ConvNeXt.
        convolutional = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        self._format = torch.channels_last if convolutional else torch.contiguous_format
        network.to(memory_format=self._format)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the contiguous (B, C, h, w) maps of (B, 3, H, W) images in [0, 1]; h = H / stride."""
        maps: list[Tensor] = list(self.network(self._normalised(images).contiguous(memory_format=self._format)))
        return [(m.permute(0, 3, 1, 2) if self._channels_last else m).contiguous() for m in maps]


class PatchTokens(_Frozen):
    """Patch tokens of some blocks of a vision transformer, through its final norm, without prefix tokens.

    Blocks after the last one needed, class-attention blocks and the head are dropped. Position embeddings
    are interpolated (bicubic, antialiased) when the input's grid is not the pretrained one.

    Attributes
    ----------
    width : int
        Channels of a token.
    patch : int
        Height and width of a patch in input pixels; inputs must be multiples of it.
    blocks : tuple of int
        Zero-based blocks whose outputs are returned.
    provenance : str
        Model, source and digest of the weights. A method does not save what has it (``Method.restored``).
    """

    def __init__(self, network: nn.Module, source: Source, blocks: tuple[int, ...], norm: bool) -> None:
        super().__init__(network, source)
        net: Any = network
        self.width: int = net.embed_dim
        self.patch: int = net.patch_embed.patch_size[0]
        self.blocks = blocks
        self.norm = norm

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of the token grid of (B, 3, H, W) images."""
        return images.shape[-2] // self.patch, images.shape[-1] // self.patch

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the (B, N, C) tokens per block of (B, 3, H, W) images in [0, 1]; N row-major."""
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise HrbenchError(f"input {height}x{width}: height and width must be multiples of {self.patch}")
        x = self._normalised(images)
        net: Any = self.network
        if isinstance(net, Cait):
            return self._cait(net, x)
        tokens: list[Tensor] = net.forward_intermediates(
            x, indices=list(self.blocks), norm=self.norm, output_fmt="NLC", intermediates_only=True
        )
        return tokens

    def _cait(self, net: Any, x: Tensor) -> list[Tensor]:
        """Run CaiT's self-attention blocks, on patch tokens only; timm's own loop fixes the input size."""
        grid = self.grid(x)
        x = net.patch_embed(x)
        x = x + resample_abs_pos_embed(
            net.pos_embed, list(grid), old_size=list(net.patch_embed.grid_size), num_prefix_tokens=0
        )
        found = []
        for index, block in enumerate(net.blocks):
            x = block(x)
            if index in self.blocks:
                found.append(net.norm(x) if self.norm else x)
        return found


def load_pyramid(model: str, weights: str, out_indices: Sequence[int]) -> FeaturePyramid:
    """Build a frozen multi-scale feature extractor.

    Parameters
    ----------
    model : str
        A timm model with ``features_only``, with or without a weights tag: ``resnet18.tv_in1k``.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see the module).
    out_indices : sequence of int
        Which of the model's feature levels (see :func:`level_indices`).

    Raises
    ------
    HrbenchError
        For an unknown model or level, and for weights that cannot be found, read or matched to the model.
    """
    source = Source.of(model, weights)
    network = _create(source.model, features_only=True, out_indices=tuple(out_indices), **source.options)
    return FeaturePyramid(network, source)


def load_tokens(model: str, weights: str, blocks: Sequence[int], *, norm: bool = True) -> PatchTokens:
    """Build a frozen extractor of patch tokens.

    Parameters
    ----------
    model : str
        A timm ViT, DeiT (distilled or not) or CaiT, with or without a weights tag.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see the module).
    blocks : sequence of int
        Zero-based blocks in ascending order; CaiT's class-attention blocks do not count.
    norm : bool
        Pass every block's output through the model's final norm, as DINOv2's own interface does.

    Raises
    ------
    HrbenchError
        For an unknown model or block, and for weights that cannot be found, read or matched to the model.
    """
    source = Source.of(model, weights)
    network: Any = _create_transformer(source)
    is_cait = isinstance(network, Cait)
    chosen, depth = tuple(blocks), len(network.blocks)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= depth:
        raise HrbenchError(f"blocks {list(chosen)} of {model}: expected ascending numbers from 0 to {depth - 1}")
    network.blocks = network.blocks[: chosen[-1] + 1]
    if is_cait:
        network.blocks_token_only = network.cls_token = None
        network.patch_embed.strict_img_size = False
    return PatchTokens(network, source, chosen, norm)


def load_transformer(model: str, weights: str, **options: Any) -> tuple[nn.Module, str, dict[str, Tensor]]:
    """Build a plain vision transformer that the method itself trains, so that its weights are learnt state.

    Parameters
    ----------
    model : str
        A timm ViT, with or without a weights tag.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see the module): where training starts.
    **options
        Of the timm model.

    Returns
    -------
    nn.Module
        The timm model without a head, as timm leaves it: trainable, in train mode.
    str
        Provenance of the initial weights.
    dict of str to Tensor
        What the file holds beyond the transformer: a decoder or a head.

    Raises
    ------
    HrbenchError
        For an unknown model, and for weights that cannot be found, read or matched to the model.
    """
    source = Source.of(model, weights)
    network = _create_transformer(source, **options)
    rest: dict[str, Tensor] = {}
    return network, source.fill(network, rest), rest


def level_indices(model: str, strides: Iterable[int]) -> tuple[int, ...]:
    """Return the ``out_indices`` of a ``features_only`` model whose maps have the given strides.

    Where several levels share a stride the deepest is taken.
    """
    with torch.device("meta"):
        info: Any = _create(model, features_only=True).feature_info
    index_of = {reduction: index for index, reduction in enumerate(info.reduction())}
    missing = [stride for stride in strides if stride not in index_of]
    if missing:
        raise HrbenchError(f"{model} has no features at stride {missing[0]}; it has {sorted(index_of)}")
    return tuple(index_of[stride] for stride in strides)


def token_depth(model: str, weights: str = "pretrained") -> int:
    """Return the number of (self-attention) blocks of a transformer that :func:`load_tokens` takes.

    It depends on the weights only where they are ``bundled``: those may belong to fewer blocks.
    """
    with torch.device("meta"):
        network: Any = _create_transformer(Source.of(model, weights))
    return len(network.blocks)


def compile_frozen(method: nn.Module, device: torch.device) -> bool:
    """Compile the frozen extractors of a method by :func:`torch.compile`, in place; tell if that was possible.

    Results differ from those without by rounding, as they do between devices. Without a working compiler for the
    device a warning is given and all stays as it is.
    """
    frozen = [module for module in method.modules() if isinstance(module, _Frozen)]
    try:
        torch.compile(torch.exp2)(torch.ones(2, device=device))  # compilers are missing only when they are needed
    except Exception as error:  # dynamo, inductor, triton and the C++ compiler each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning("frozen backbones are not compiled, torch.compile does not work on %s: %s", device, reason)
        return False
    for module in frozen:
        module.compile()
    return bool(frozen)


def _create(model: str, **options: Any) -> nn.Module:
    """Make a timm model without weights; what timm says of a wrong name or option becomes one error."""
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise HrbenchError(f"unknown timm model {model!r}{hint}")
    try:
        network: nn.Module = timm.create_model(model, pretrained=False, **options)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
        AssertionError,
        IndexError,
        ValueError,
        KeyError,
    ) as error:
        wanted = "feature pyramid" if "features_only" in options else "patch tokens"
        raise HrbenchError(f"timm model {model!r} gives no {wanted} with {options}: {error}") from None
    return network


def _create_transformer(source: Source, **options: Any) -> nn.Module:
    model = source.model
    # CaiT is the one family here without dynamic_img_size.
    dynamic = {} if model.startswith("cait") else {"dynamic_img_size": True}
    network = _create(model, num_classes=0, **dynamic, **{**source.options, **options})
    if not all(hasattr(network, name) for name in ("blocks", "patch_embed", "forward_intermediates")):
        raise HrbenchError(f"timm model {model!r} is not a vision transformer with patch tokens")
    return network
