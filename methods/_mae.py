"""Masked autoencoder: a vision transformer that sees a quarter of the patches and paints the rest.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377. The encoder is any plain timm
ViT with a class token, the decoder a narrower transformer. Patch tokens are row-major. Position embeddings are
closed-form, so the network takes any input whose sides are multiples of the patch; they are not parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hrbench.backbones import load_transformer
from hrbench.errors import HrbenchError
from hrbench.precision import full_precision

__all__ = [
    "MaskedAutoencoder",
    "masked_error",
    "patchify",
    "random_crops",
    "random_order",
    "sincos_positions",
    "unpatchify",
]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_POSITION_TOLERANCE = 1e-3
_PARTS = {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"}
_EXAMPLE = "vit_base_patch16_224.mae"

# Names in the authors' checkpoints -> names here.
_DECODER_NAMES = (
    (r"^decoder_embed\.", "embed."),
    (r"^decoder_blocks\.(\d+)\.", r"blocks.\1."),
    (r"^decoder_norm\.", "norm."),
    (r"^decoder_pred\.", "pixels."),
    (r"\.attn\.qkv\.", ".self_attn.in_proj_"),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.fc", ".linear"),
)


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder on (B, 3, H, W) images in [0, 1].

    Parameters
    ----------
    backbone : str
        A plain timm ViT with a class token.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path: an encoder of a masked autoencoder, or one with its decoder,
        whose first blocks are then used too.
    patch : int, optional
        Height and width of a patch in pixels; by default the backbone's. Given weights are resampled to another one:
        the encoder's filters by timm, the decoder's last layer as the patches that it paints.
    width, heads, depth : int
        Of the decoder: channels, attention heads, blocks.
    given_depth : int, optional
        Most decoder blocks that are taken from a file; by default all.

    Attributes
    ----------
    patch : int
    origin : str
        Where the weights came from before any training here.

    Raises
    ------
    HrbenchError
        For a backbone of another kind, and weights that do not fit or are not a masked autoencoder's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        weights: str,
        *,
        patch: int | None = None,
        width: int = 512,
        heads: int = 16,
        depth: int = 8,
        given_depth: int | None = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"patch_size": patch} if patch else {}
        if patch and weights not in ("random", "bundled"):
            # An input of as many patches as the weights know: timm would resample their positions to others.
            with torch.device("meta"):
                plain: Any = load_transformer(backbone, "random")[0]
            options["img_size"] = tuple(patch * n for n in plain.patch_embed.grid_size)
        network, self.origin, rest = load_transformer(backbone, weights, **options)
        vit: Any = network
        parts = {key.partition(".")[0] for key in network.state_dict()}
        if parts != _PARTS:
            odd = ", ".join(sorted(parts ^ _PARTS))
            raise HrbenchError(f"backbone {backbone!r} differs in {odd}; expected a plain ViT such as {_EXAMPLE}")
        self.patch: int = vit.patch_embed.patch_size[0]
        self._pretrained_grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        if weights == "random":
            _initialise(network)
        elif weights != "bundled":  # whose positions were learnt; stage 1 gets used to these
            _check_positions(vit.pos_embed, self._pretrained_grid, backbone)
        vit.pos_embed = None  # closed-form here, and timm's would be trained
        self.encoder = network
        self.decoder = Decoder(vit.embed_dim, width, heads, depth, self.patch)
        found = _decoder_weights(rest)
        if found:
            found |= {key: _repatched(found[key], self.patch) for key in found if key.startswith("pixels.")}
            self.decoder.fill(found, str(weights), depth if given_depth is None else given_depth)
            self.origin += f" with {self.decoder.filled} decoder blocks"
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def normalised(self, images: Tensor) -> Tensor:
        """Return images in [0, 1] with ImageNet's mean and deviation taken out."""
        return (images - self.mean) / self.std

    def denormalised(self, images: Tensor) -> Tensor:
        """Undo :meth:`normalised`."""
        return images * self.std + self.mean

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of the patches of (B, C, H, W) images."""
        return images.shape[-2] // self.patch, images.shape[-1] // self.patch

    def encode(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the (B, 1 + K, D) tokens of normalised images, class token first.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W), normalised.
        keep : Tensor, optional
            (B, K) int64 indices of the patches that the encoder sees; by default all, in order.
        """
        if images.shape[-2] % self.patch or images.shape[-1] % self.patch:
            raise HrbenchError(
                f"input {images.shape[-2]}x{images.shape[-1]}: height and width must be multiples of {self.patch}"
            )
        vit: Any = self.encoder
        tokens = vit.patch_embed(images).flatten(1, 2)
        positions = sincos_positions(tokens.shape[-1], self.grid(images), self._pretrained_grid)
        positions = positions.to(tokens.device, non_blocking=True)  # else a GPU is waited for
        tokens = tokens + positions[1:]
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (vit.cls_token + positions[0]).expand(len(tokens), -1, -1)
        encoded: Tensor = vit.norm(vit.blocks(torch.cat((first, tokens), dim=1)))
        return encoded

    def decode(
        self, tokens: Tensor, grid: tuple[int, int], *, blocks: int, restore: Tensor | None = None
    ) -> list[Tensor]:
        """Return the (B, N, width) patch tokens after each of the first `blocks` decoder blocks.

        Parameters
        ----------
        tokens : Tensor
            (B, 1 + K, D) of :meth:`encode`.
        grid : (int, int)
            Rows and columns of the patches.
        blocks : int
        restore : Tensor, optional
            (B, N) int64, where each patch lies in the kept tokens followed by mask tokens; by default all tokens
            are there, in order.
        """
        positions = sincos_positions(self.decoder.width, grid, self._pretrained_grid)
        found: list[Tensor] = self.decoder(tokens, positions, blocks, restore)
        return found

    def pixels(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the (B, 3, H, W) normalised image that decoder tokens (B, N, width) stand for, in float32."""
        with full_precision(tokens.device):
            return unpatchify(self.decoder.pixels(self.decoder.norm(tokens.float())), grid, self.patch)

    def paint(self, images: Tensor, *, mask_ratio: float, blocks: int) -> tuple[Tensor, Tensor]:
        """Hide a random share of the patches and paint all from the rest.

        Parameters
        ----------
        images : Tensor
            (B, 3, H, W), normalised.
        mask_ratio : float
            Share of the patches that is hidden.
        blocks : int
            Decoder blocks used.

        Returns
        -------
        Tensor
            (B, 3, H, W) painted, normalised.
        Tensor
            (B, N) bool, True where a patch was hidden.
        """
        grid = self.grid(images)
        order, restore = random_order(len(images), grid[0] * grid[1], images.device)
        kept = int(order.shape[1] * (1 - mask_ratio))
        decoded = self.decode(self.encode(images, order[:, :kept]), grid, blocks=blocks, restore=restore)
        return self.pixels(decoded[-1], grid), restore >= kept


class Decoder(nn.Module):
    """Transformer from encoder tokens to patches of pixels.

    Parameters
    ----------
    encoder_width, width, heads, depth : int
    patch : int
        Height and width of a patch in pixels.
    """

    def __init__(self, encoder_width: int, width: int, heads: int, depth: int, patch: int) -> None:
        super().__init__()
        if width % heads or width % 4:
            raise HrbenchError(f"decoder width {width}: expected a multiple of 4 and of its {heads} heads")
        self.width = width
        self.filled = 0
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, 3 * patch**2)
        _initialise(self)

    def forward(self, tokens: Tensor, positions: Tensor, blocks: int, restore: Tensor | None) -> list[Tensor]:
        """Return the patch tokens after each block; see :meth:`MaskedAutoencoder.decode`."""
        x = self.embed(tokens)
        first, rest = x[:, :1], x[:, 1:]
        if restore is not None:
            hidden = self.mask_token.expand(len(x), restore.shape[1] - rest.shape[1], -1)
            rest = torch.cat((rest, hidden), dim=1).gather(1, restore[..., None].expand(-1, -1, self.width))
        x = torch.cat((first, rest), dim=1) + positions.to(x.device, non_blocking=True)
        found = []
        for block in list(self.blocks)[:blocks]:
            x = block(x)
            found.append(x[:, 1:])
        return found

    def fill(self, given: Mapping[str, Tensor], source: str, depth: int) -> None:
        """Load weights as named here, at most `depth` blocks; blocks that only one of both has are left out.

        Raises
        ------
        HrbenchError
            If something else is missing or shapes differ.
        """
        own = self.state_dict()
        blocks = {int(key.split(".")[1]) for key in given if key.startswith("blocks.")}
        self.filled = min(len(blocks), len(self.blocks), depth)
        wanted = [key for key in own if not key.startswith("blocks.") or int(key.split(".")[1]) < self.filled]
        wrong = [
            f"{key} is {tuple(given[key].shape) if key in given else 'missing'}, expected {tuple(own[key].shape)}"
            for key in wanted
            if key not in given or given[key].shape != own[key].shape
        ]
        if wrong:
            raise HrbenchError(f"decoder of weights {source!r} does not fit: {'; '.join(wrong[:3])}")
        self.load_state_dict({key: given[key] for key in wanted}, strict=False)


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) images into (B, N, patch * patch * C) patches, channels last within a patch."""
    b, c, h, w = images.shape
    cut = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Undo :func:`patchify`: (B, N, patch * patch * C) to (B, C, H, W)."""
    b = len(patches)
    cut = patches.reshape(b, grid[0], grid[1], patch, patch, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, grid[0] * patch, grid[1] * patch)


def masked_error(painted: Tensor, images: Tensor, hidden: Tensor, patch: int) -> Tensor:
    """Return the mean squared error over the hidden patches, a scalar.

    Parameters
    ----------
    painted, images : Tensor
        (B, 3, H, W).
    hidden : Tensor
        (B, N) bool.
    patch : int
    """
    errors = (patchify(painted, patch) - patchify(images, patch)).square().mean(dim=-1)
    return (errors * hidden).sum() / hidden.sum()


def random_order(batch: int, patches: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a random order of the patches per image, (B, N) int64, and its inverse."""
    order = torch.rand(batch, patches, device=device).argsort(dim=1)
    return order, order.argsort(dim=1)


@lru_cache(maxsize=32)
def sincos_positions(width: int, grid: tuple[int, int], pretrained: tuple[int, int] | None = None) -> Tensor:
    """Return fixed two-dimensional sine-cosine position embeddings.

    Parameters
    ----------
    width : int
        Channels, a multiple of 4: sine and cosine of the column, then of the row.
    grid : (int, int)
        Rows and columns of the patches.
    pretrained : (int, int), optional
        Grid that the network knows. Another one is stretched over it, cell centres on cell centres: interpolation
        between known positions, not extrapolation beyond them.

    Returns
    -------
    Tensor
        (1 + N, width) float32; the first row, the class token's, is zero.
    """
    rows, columns = (
        (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) * (known / n) - 0.5
        for n, known in zip(grid, pretrained or grid, strict=True)
    )
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))

    def waves(positions: Tensor) -> Tensor:
        angles = positions[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=1)

    shape = (*grid, width // 2)
    found = torch.cat((waves(columns)[None].expand(shape), waves(rows)[:, None].expand(shape)), dim=-1)
    return torch.cat((torch.zeros(1, width, device="cpu"), found.reshape(-1, width).float()))


def random_crops(images: Tensor, least: float) -> Tensor:
    """Return a random part of every image, brought back to its size and mirrored half of the time.

    Parameters
    ----------
    images : Tensor
        (B, C, H, W) in [0, 1].
    least : float
        Least share of the area that a part has; 1 only mirrors. Aspect ratios vary between 3:4 and 4:3.
    """
    height, width = images.shape[-2:]
    found = []
    for image in images:
        share, ratio, top, left, mirror = torch.rand(5).tolist()
        area = least + (1 - least) * share
        stretch = 1.0 if least == 1 else math.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
        h = min(height, max(1, round(height * math.sqrt(area) * stretch)))
        w = min(width, max(1, round(width * math.sqrt(area) / stretch)))
        y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
        part = image[:, y : y + h, x : x + w]
        if (h, w) != (height, width):
            part = functional.interpolate(part[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
        found.append(part.flip(-1) if mirror < 0.5 else part)
    return torch.stack(found)


def _initialise(network: nn.Module) -> None:
    """Draw weights as masked autoencoders do: Xavier-uniform matrices, zero biases, small tokens."""
    for name, parameter in network.named_parameters():
        if name.endswith(("cls_token", "mask_token")):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter.detach().view(len(parameter), -1))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _check_positions(found: Tensor, grid: tuple[int, int], backbone: str) -> None:
    error = float((found.detach()[0] - sincos_positions(found.shape[-1], grid)).abs().max())
    if error > _POSITION_TOLERANCE:
        raise HrbenchError(
            f"weights of {backbone!r} are not a masked autoencoder's: position embeddings differ by {error:.2g} from "
            f"the fixed sine-cosine ones, expected {_POSITION_TOLERANCE} at most"
        )


def _decoder_weights(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the decoder's part of a checkpoint under the names used here; empty if it has none."""
    found = {}
    for key, value in given.items():
        if key == "mask_token" or (key.startswith("decoder_") and key != "decoder_pos_embed"):
            name = key
            for pattern, replacement in _DECODER_NAMES:
                name = re.sub(pattern, replacement, name)
            found[name] = value
    return found


def _repatched(rows: Tensor, patch: int) -> Tensor:
    """Return the weight or bias of a layer that paints patches, so that it paints them at another size.

    Parameters
    ----------
    rows : Tensor
        (3 * p * p, ...), channels last within a patch; of any other length it is returned as it is.
    patch : int
    """
    side = math.isqrt(len(rows) // 3)
    if side == patch or 3 * side**2 != len(rows):
        return rows
    painted = rows.reshape(side, side, 3, -1).permute(3, 2, 0, 1)
    painted = functional.interpolate(painted, (patch, patch), mode="bicubic", antialias=True)
    return painted.permute(2, 3, 1, 0).reshape(-1, *rows.shape[1:])
