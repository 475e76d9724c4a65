"""k-NN: how far a feature lies from the nearest ones of a bank of normal features.

The idea is PatchCore's: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv 2106.08265. There
the bank is a tenth of all features, which no memory holds for large images cut into tiles. Here its size is fixed: a
seeded sample of all features is drawn as they come, and of that those are kept that cover it best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hrbench.errors import HrbenchError
from hrbench.method import FitContext, Method, Normals, Prediction, Preset, Weights
from hrbench.precision import full_precision

from ._image_operations import size_of
from ._patch_features import Join, Padding, PatchFeatures, at_input_size, batched

__all__ = ["KNN", "Reservoir", "covering", "isolation", "nearest"]

_DISTANCES = 1 << 25  # that are held at once: 128 MiB

_PAPER: Mapping[str, Any] = {
    "backbone": "wide_resnet50_2.tv_in1k",
    "strides": (8, 16),
    "normalise": False,
    "padding": "zeros",
    "candidates": None,
    "bank": None,
    "share": 0.1,
    "blur": 4.0,
}


class KNN(Method):
    """Distance to the nearest of a bank of normal features of any timm backbone.

    Parameters
    ----------
    backbone : str
        A timm model: any with ``features_only``, or a vision transformer when `block` says which block.
    weights : str
        ``pretrained``, ``bundled``, ``random`` or a path (see :mod:`hrbench.backbones`).
    strides : sequence of int
        Of the feature maps used, in input pixels; ignored for patch tokens.
    block : int, optional
        Zero-based transformer block whose patch tokens are used instead of a pyramid.
    pool : int
        Odd number of places over which features are averaged.
    normalise : bool
        Bring each map's features to unit length first.
    join : str
        How coarser maps come to the finest grid: ``bilinear`` or ``nearest``.
    padding : str
        What the network finds outside an input: ``zeros``, as it was trained, or what continues the input,
        ``replicate`` or ``reflect``. With zeros the map glows along the border of the image.
    candidates : int, optional
        Features that are drawn from all, each with equal probability; None for all of them.
    bank : int, optional
        Features that are kept of those drawn; None for `share`.
    share : float
        Of those drawn, where `bank` is None.
    projected : int
        Random directions in which the features are compared while the bank is chosen; 0 for the features themselves.
    neighbours : int
        How many of the nearest: the map is the mean of their distances.
    reweight : int
        Scale each image's map as the paper does the image score: by how much nearer its farthest feature is to its
        nearest one of the bank than to those around that one, so many; 0 for none. The paper's are 9.
    blur : float
        Standard deviation of a Gaussian blur of the map, in input pixels; 0 for none: it destroys tiny defects.
    batch_size : int
        Inputs at a time while it is fitted.
    """

    title = "k-NN"
    paper = "after PatchCore, Roth et al., arXiv 2106.08265"
    weights_licence = "bundled: Apache-2.0; resnet18, wide_resnet50_2 (tv_in1k): BSD-3-Clause; others: see timm"
    image_score = "max"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("whole:224:bilinear", _PAPER),
        "native": Preset("tiled:512:128"),
        "demo": Preset(
            "tiled:256:64",
            {"backbone": "resnet18", "weights": "bundled", "candidates": 20_000, "bank": 2_000, "projected": 64},
        ),
    }

    bank: Tensor

    def __init__(
        self,
        backbone: str = "resnet18.tv_in1k",
        weights: Weights = "pretrained",
        strides: Sequence[int] = (4, 8),
        block: int | None = None,
        pool: int = 3,
        normalise: bool = True,
        join: Join = "bilinear",
        padding: Padding = "replicate",
        candidates: int | None = 200_000,
        bank: int | None = 10_000,
        share: float = 0.1,
        projected: int = 128,
        neighbours: int = 1,
        reweight: int = 0,
        blur: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        super().__init__()

        def require(ok: bool, option: str, found: object, expected: str) -> None:
            if not ok:
                raise HrbenchError(f"{option} of knn is {found!r}, expected {expected}")

        require(candidates is None or candidates >= 1, "candidates", candidates, "1 or more")
        require(bank is None or bank >= 1, "bank", bank, "1 or more")
        require(0 < share <= 1, "share", share, "more than 0 and at most 1")
        require(projected >= 0, "projected", projected, "0 or more")
        require(neighbours >= 1, "neighbours", neighbours, "1 or more")
        require(reweight == 0 or reweight >= 2, "reweight", reweight, "0, or 2 or more")
        require(blur >= 0, "blur", blur, "0 or more pixels")
        self.features = PatchFeatures(
            backbone, weights, strides, block, pool=pool, normalise=normalise, join=join, padding=padding
        )
        self.multiple = self.features.multiple
        self._candidates, self._bank, self._share, self._projected = candidates, bank, share, projected
        self._neighbours, self._reweight, self._blur, self._batch_size = neighbours, reweight, blur, batch_size
        self.register_buffer("bank", torch.zeros(1, self.features.width))  # its length is learnt

    @torch.no_grad()
    def fit(self, normals: Normals, context: FitContext) -> None:
        """Draw candidates in one pass over the normal images, and keep those that cover the rest best."""
        random = torch.Generator().manual_seed(context.seed)
        reservoir = Reservoir(self._candidates, random)
        for batch in batched(context.track(normals, total=len(normals)), self._batch_size, context.device):
            reservoir.update(self.features(batch).permute(0, 2, 3, 1).flatten(0, 2))
        drawn = reservoir.vectors
        number = min(len(drawn), self._bank or max(1, round(self._share * len(drawn))))
        compared = drawn
        if 0 < self._projected < drawn.shape[1]:
            directions = torch.randn(drawn.shape[1], self._projected, generator=random)
            compared = drawn @ directions.to(drawn)
        start = int(torch.randint(len(drawn), (), generator=random))
        steps = context.track(torch.arange(number), total=number, description="choose")
        self.bank = drawn[covering(compared, start, steps)]

    def predict(self, batch: Tensor) -> Prediction:
        """Return the distance per place of the finest stride; at the input's size where it is blurred."""
        found = self.features(batch)
        shape = (len(batch), *size_of(found))
        vectors = found.permute(0, 2, 3, 1).flatten(0, 2)
        with full_precision(batch.device):
            distances, places = nearest(vectors, self.bank, self._neighbours)
            maps = {"distance": distances.mean(dim=1).reshape(shape)}
            if self._reweight:
                maps["weight"] = isolation(vectors, self.bank, places[:, 0], self._reweight).reshape(shape)
        if self._blur:
            maps["distance"] = at_input_size(maps["distance"], size_of(batch), self._blur)
        return Prediction(maps)

    def finish(self, maps: dict[str, Tensor]) -> Tensor:
        """Scale the map, where that is asked for, by the weight of its highest place."""
        distance = maps["distance"]
        return distance * maps["weight"].take(distance.argmax()) if self._reweight else distance


class Reservoir:
    """A sample without replacement of all vectors that come, each with equal probability; only it is held.

    Every vector draws a lot; those with the lowest are the sample.

    Parameters
    ----------
    size : int or None
        None for all vectors.
    random : torch.Generator
        On the CPU, so that every device draws the same.
    """

    def __init__(self, size: int | None, random: torch.Generator) -> None:
        self._size = size
        self._random = random
        self._lots = torch.zeros(0, dtype=torch.float64)
        self._parts: list[Tensor] = []

    @property
    def vectors(self) -> Tensor:
        """The sample, (n, C)."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def update(self, vectors: Tensor) -> None:
        """Offer N vectors, (N, C)."""
        lots = torch.rand(len(vectors), dtype=torch.float64, generator=self._random)
        room = len(lots) if self._size is None else self._size - len(self._lots)
        if room > 0:
            self._parts.append(vectors[:room])
            self._lots = torch.cat([self._lots, lots[:room]])
            lots, vectors = lots[room:], vectors[room:]
        low = torch.nonzero(lots < self._lots.max()).flatten()
        if not len(low):
            return
        held = len(self._lots)
        lots = torch.cat([self._lots, lots[low]])
        last = lots.argsort(stable=True)[held:]
        leave = last[last < held]
        come = torch.ones(len(low), dtype=torch.bool)
        come[last[last >= held] - held] = False
        self._lots[leave] = lots[held:][come]
        places, chosen = (item.to(vectors.device, non_blocking=True) for item in (leave, low[come]))
        self.vectors[places] = vectors[chosen]


def covering(vectors: Tensor, start: int, steps: Iterable[object]) -> Tensor:
    """Return the numbers of vectors, (N, C), each the farthest from those before it: the greedy k-centre choice.

    Parameters
    ----------
    vectors : Tensor
    start : int
        The first one.
    steps : iterable
        Of as many items as are chosen; it may show progress.

    Notes
    -----
    A step reads all vectors once and never waits for the device. If d is the largest distance from any vector to the
    nearest chosen one, no choice of as many has less than d / 2 (Gonzalez 1985).
    """
    vectors = vectors - vectors.mean(dim=0)  # the product below cancels less
    squares = (vectors * vectors).sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    chosen = []
    last = torch.full((1,), start, device=vectors.device)  # of one axis: the host would have to read a plain number
    for _ in steps:
        chosen.append(last)
        towards = squares - 2 * (vectors @ vectors[last][0]) + squares[last]
        nearest = torch.minimum(nearest, towards)
        nearest.index_fill_(0, last, -torch.inf)  # not again, where rounding leaves something
        last = nearest.argmax(dim=0, keepdim=True)
    return torch.cat(chosen)


def nearest(vectors: Tensor, bank: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return distances and places of the `number` nearest of the bank, (M, C), to each vector, (N, C).

    Which are nearest is found by a matrix product; their distances are then computed from differences, for the product
    cancels where a vector is close to the bank.

    Returns
    -------
    Tensor
        (N, number) distances, rising.
    Tensor
        (N, number) int64 places in the bank.
    """
    number = min(number, len(bank))
    middle = bank.mean(dim=0)
    vectors, bank = vectors - middle, bank - middle
    squares = (bank * bank).sum(dim=1)
    parts = []
    for part in torch.split(vectors, max(1, _DISTANCES // len(bank))):
        places = torch.addmm(squares, part, bank.T, alpha=-2).topk(number, dim=1, largest=False).indices
        distances, order = _apart(part, bank, places).sort(dim=1)
        parts.append((distances, places.gather(1, order)))
    distances, places = (torch.cat(items) for items in zip(*parts, strict=True))
    return distances, places


def isolation(vectors: Tensor, bank: Tensor, places: Tensor, number: int) -> Tensor:
    """Return PatchCore's weight of each vector, (N, C), in [0, 1): its equation 7.

    One minus the share that the nearest one of the bank, at `places` (N,), has in the sum of exponentials of the
    distances to the `number` ones around it, itself among them.
    """
    middles, inverse = torch.unique(places, return_inverse=True)
    _, around = nearest(bank[middles], bank, number)
    weights = []
    for part, place, near in zip(
        *(torch.split(item, max(1, _DISTANCES // len(bank))) for item in (vectors, places, around[inverse])),
        strict=True,
    ):
        own = _apart(part, bank, place[:, None])[:, 0]
        weights.append(1 - torch.exp(own - torch.logsumexp(_apart(part, bank, near), dim=1)))
    return torch.cat(weights)


def _apart(vectors: Tensor, bank: Tensor, places: Tensor) -> Tensor:
    """Return the distances, (N, K), of vectors, (N, C), from those at `places`, (N, K), of the bank."""
    apart: Tensor = torch.linalg.vector_norm(vectors[:, None] - bank[places], dim=2)
    return apart
