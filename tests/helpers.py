"""Small data for tests."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hrbench import list_methods
from hrbench.evidence import Evidence
from hrbench.evidence.histograms import Histogram
from hrbench.method import Batch, Batches, FitContext, Normals
from hrbench.testing import StackedNormals

BUILT_IN = [
    name for name in list_methods() if "." not in name
]  # test_anomalib.py tests those that come by entry points

# A configuration of each method that fits in a second; a method that is missing here is tested in its demo preset.
SMALL_METHODS = {
    "fastflow": {"weights": "random", "backbone": "resnet10t", "strides": (4, 8), "flow_steps": 2, "steps": 2},
    "isstad": {
        "weights": "random", "backbone": "test_vit", "decoder_width": 32, "decoder_heads": 4, "decoder_depth": 2,
        "mae_depth": 1, "mae_batch_size": 2, "batch_size": 2, "mae_steps": 2, "steps": 2,
    },
    "l2bt": {"weights": "random", "teacher": "vit_tiny_patch16_224", "steps": 2, "batch_size": 2},
    "uflow": {"preset": "demo", "steps": 2, "batch_size": 2},
    "rstpm": {"weights": "random", "teacher": "test_efficientnet", "second_teacher": "test_byobnet", "strides": (4, 8),
              "width": 4, "batch_size": 2, "steps": 2, "discriminator_batch_size": 2, "discriminator_steps": 2},
}  # fmt: skip


def noise_normals(images: int) -> StackedNormals:
    """Return coloured noise, (images, 3, 64, 64) in [0, 0.5]."""
    return StackedNormals(0.5 * torch.rand((images, 3, 64, 64), generator=torch.Generator().manual_seed(0)))


class PlainFeatures:
    """Features that are computed for every batch."""

    def __init__(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> None:
        self.normals, self.extract = normals, extract

    def __len__(self) -> int:
        return len(self.normals)

    def batches(self, batch_size: int, *, steps: int, seed: int, start: int = 0) -> Iterator[list[Tensor]]:
        for batch in self.normals.batches(batch_size, steps=steps, seed=seed, start=start):
            yield list(self.extract(batch))


class PlainContext(FitContext):
    """The plainest fit loop, of at most 60 steps; remembers what it was asked, and its losses."""

    seed = 0
    device = torch.device("cpu")
    held_out = noise_normals(4)

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps = 0

    def features(self, normals: Normals, extract: Callable[[Tensor], Sequence[Tensor]]) -> PlainFeatures:
        return PlainFeatures(normals, extract)

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
        self.steps = steps
        for batch in normals.batches(batch_size, steps=min(steps, 60), seed=self.seed):
            optimizer.zero_grad()
            value = loss(batch)
            value.backward()
            optimizer.step()
            self.losses.append(float(value.detach()))
        return self.losses

    def track(self, inputs: Iterable[Batch], *, total: int, description: str = "fit") -> Iterable[Batch]:
        return inputs


def write_tree(root: Path, *, categories=("bolt",), train=8, good=3, bad=5, size=(48, 70)) -> Path:
    """Write grey noise images with dark squares as defects, in MVTec AD layout."""
    rng = np.random.default_rng(0)

    def image(*parts):
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, rng.normal(150, 6, (*size, 3))

    def save(path, pixels):
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)

    for category in categories:
        for index in range(train):
            save(*image(category, "train", "good", f"{index:03d}.png"))
        for index in range(good):
            save(*image(category, "test", "good", f"{index:03d}.png"))
        for index in range(bad):
            path, pixels = image(category, "test", "dent", f"{index:03d}.png")
            mask = np.zeros(size, np.uint8)
            for _ in range(1 + index % 2):
                side = 2 + 3 * index
                top, left = rng.integers(0, size[0] - side), rng.integers(0, size[1] - side)
                mask[top : top + side, left : left + side] = 255
            pixels[mask > 0] -= 60
            save(path, pixels)
            target = root / category / "ground_truth" / "dent" / f"{index:03d}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(target)
    return root


def assert_same_bits(found: Evidence, expected: Evidence, but: Sequence[str] = ()) -> None:
    """Compare evidence, all but some columns of its images, to the last bit."""
    assert found.images.drop(columns=list(but)).equals(expected.images.drop(columns=list(but)))
    assert found.components.equals(expected.components)
    assert (found.shift, found.lossless, found.spec) == (expected.shift, expected.lossless, expected.spec)
    pairs = [(found.defect_scores, expected.defect_scores)]
    for name, arrays in (("rims", ("outer_scores", "inner")), ("regions", ("scores",))):
        part, like = getattr(found, name), getattr(expected, name)
        assert (part is None) == (like is None)
        if part is not None:
            assert part.table.equals(like.table)
            pairs += [(getattr(part, array), getattr(like, array)) for array in arrays]
    assert found.unmasked.keys() == expected.unmasked.keys()
    for own, other in zip(found.pixels, expected.pixels, strict=True):
        assert type(own) is type(other)
        pairs.append((own.keys, other.keys))
        if isinstance(own, Histogram):
            pairs.append((own.cumulative, other.cumulative))
    for own, other in pairs:
        assert own.dtype == other.dtype
        assert np.array_equal(own, other)
