"""Tiled with enough overlap, a convolutional method gives the map of the whole image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from hrbench.engine.training import seeded
from hrbench.engine.views import SPOILT, Look
from hrbench.method import Method
from hrbench.registry import create_method

Image = npt.NDArray[np.uint8]
THICK = 32  # of a strip, the shorter side of an image

OPTIONS = {
    "fastflow": {"backbone": "resnet10t", "strides": (4, 8), "flow_steps": 2, "kernels": (3, 1)},
    "uflow": {"backbone": "resnet10t", "strides": (4, 8), "flow_steps": 2, "test": "none"},
    "rstpm": {"teacher": "resnet10t", "second_teacher": "test_resnet", "strides": (4,), "width": 4},
}


def made(name: str) -> Method:
    """Return a method with random weights whose every layer has a say."""
    with seeded(0):
        method = create_method(name, weights="random", **OPTIONS[name]).eval()
        for module in method.modules():
            if isinstance(module, nn.BatchNorm2d) and module.weight is not None:  # timm starts some at zero
                nn.init.uniform_(module.weight, 0.8, 1.2)
    return method


def strip(length: int) -> Image:
    """Return blobs and noise, (THICK, length, 3)."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(0, 200, (THICK // 8, length // 8, 3)), np.ones((8, 8, 1)))
    return (coarse + rng.integers(0, 56, (THICK, length, 3))).astype(np.uint8)


@torch.no_grad()
def final(method: Method, image: Image, look: Look) -> Tensor:
    tiles, placement = look.split(image)
    maps = method.predict(tiles.float() / 255).maps
    return method.finish({name: look.merge(tile, placement) for name, tile in maps.items()})


def radius(method: Method, length: int) -> int:
    """Return how far, in pixels, the map changes around a changed block of pixels."""
    image = strip(length)
    other = image.copy()
    middle = length // 2
    other[:, middle - 4 : middle + 4] ^= 0xFF
    whole = Look("whole", (THICK, length))
    changed = (final(method, image, whole) != final(method, other, whole)).any(dim=0).nonzero()
    reached = int((changed - middle).abs().max())
    assert reached < length // 2 - 8, "the strip is too short to see how far a change reaches"
    return reached


@pytest.mark.parametrize("name", OPTIONS)
def test_tiles_give_the_map_of_the_whole_image(name: str) -> None:
    method = made(name)
    step = method.multiple
    reach = -(-radius(method, 64 * 16) // step) * step
    enough = int(reach / SPOILT)
    tile = enough + 6 * step
    image = strip(2 * tile + 3 * step)  # the last tile is moved inwards
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))

    def differs(overlap: int, picture: Image) -> float:
        size = picture.shape[:2]
        shape = (THICK, tile) if size[0] == THICK else (tile, THICK)
        expected = final(method, picture, Look("whole", (size[0], size[1])))
        look = Look("tiled", shape, overlap)
        assert len(look.place((size[0], size[1]))) > 2
        return float((final(method, picture, look) - expected).abs().max() / expected.std())

    assert differs(enough, image) < 1e-4
    assert differs(enough, turned) < 1e-4
    assert differs(2 * step, image) > 1e-2, "borders must matter somewhere, or this test shows nothing"
