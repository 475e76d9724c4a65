"""The a-contrario test: which regions of the latents are too energetic to be noise.

Under the null hypothesis every entry of a latent map is N(0, 1), independent of the others. The number of false
alarms (NFA) of a region is the number of regions that are tested, times the probability that noise is as strong as
what was seen there. Calling regions with NFA < 1 gives at most one false alarm per input on noise, so that no
threshold has to be taken from data (Tailanian et al., arXiv 2211.12353; Desolneux, Moisan and Morel, 2008).

Three tests:

``tree``
    The regions are the connected components of the upper level sets of the energy. The most significant of each
    branch is kept, and each is charged the number of all polyominoes of any size that fit on the grids.
``tree-by-size``
    The same regions, each charged only for the polyominoes of its own size. Small regions need far less energy,
    and the bound on the false alarms is kept.
``window``
    How many entries of a window exceed a quantile, against the binomial law; the first form of the test.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.stats import binom
from skimage.morphology import max_tree
from torch import Tensor
from torch.nn import functional

from hrbench.errors import HrbenchError

__all__ = [
    "Charge",
    "Interpolation",
    "LevelTree",
    "NfaTest",
    "TreeTest",
    "chernoff_log10_p",
    "chi2_quantile",
    "clusters",
    "found_map",
    "level_tree",
    "log10_nfa",
    "log10_polyominoes",
    "log10_tests",
    "log10_tests_by_size",
    "tree_map",
    "window_log10_p",
]

NfaTest = Literal["tree", "tree-by-size", "window"]
Interpolation = Literal["bilinear", "nearest"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# There are about _ALPHA * _BETA^n / n fixed polyominoes of n cells, never more (Jensen and Guttmann, J. Phys. A 33,
# L257, 2000).
_ALPHA, _BETA = 0.316915, 4.062570
_MARGIN = 1e-6  # above 0, for rounding: what is bounded by it is not found
_CELLS_OF_A_TREE = 600  # that take as long as a tree takes beside its cells
_LEAST_LOG10_P = -300.0  # of a window that is full: its probability is 0, and infinity cannot be interpolated


@torch.no_grad()
def log10_nfa(
    latents: Sequence[Tensor],
    *,
    test: NfaTest = "tree",
    grid: tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    window: int = 5,
    quantile: float = 0.9,
    freedoms: Sequence[float] | None = None,
) -> Tensor:
    """Return log10 of the number of false alarms per position; below 0 is an anomaly.

    Parameters
    ----------
    latents : sequence of Tensor
        (B, C, h, w) per scale, finest first.
    test : str
        ``tree``, ``tree-by-size`` or ``window``.
    grid : (int, int), optional
        Of the result; by default that of the finest scale.
    interpolation : str
        From the scales' grids to `grid`: ``bilinear`` (bicubic for ``window``) as in the paper, which dilates strong
        detections, or ``nearest``.
    window, quantile
        Of the test ``window``: width in cells of the finest scale, and the quantile of z^2 that candidates exceed.
    freedoms : sequence of float, optional
        For the tests on trees, per scale: degrees of freedom of the energy of a cell, where channels are not
        independent. By default their number.

    Returns
    -------
    Tensor
        (B, H, W) float32. Where nothing is found it is log10 of the number of tests, the largest value there is.

    Raises
    ------
    HrbenchError
        For a window that is not one.
    """
    size = grid or (latents[0].shape[-2], latents[0].shape[-1])
    shapes = [(z.shape[-2], z.shape[-1]) for z in latents]
    if test == "window":
        maps = [window_log10_p(z, window / 2**scale, quantile) for scale, z in enumerate(latents)]
        total = torch.stack([_resize(m, size, interpolation, "bicubic") for m in maps]).sum(dim=0)
        return total + math.log10(sum(h * w for h, w in shapes))
    trees = TreeTest(test, tuple(shapes), size, interpolation)
    energies = [energy.cpu() for energy in trees.energies(latents)]
    found = trees.on_host(energies, freedoms or [z.shape[1] for z in latents])
    return trees.joined([scale.to(latents[0].device, non_blocking=True) for scale in found])


@dataclass(frozen=True)
class TreeTest:
    """A test on trees in its three steps: before, on and after the host.

    Attributes
    ----------
    test : str
        ``tree`` or ``tree-by-size``.
    shapes : tuple of (int, int)
        Of the scales, finest first.
    size : (int, int)
        Of the result.
    interpolation : str
        See :func:`log10_nfa`.
    only_found : bool
        Where log10 NFA is not below 0, any value that is not will do: what cannot get there is left out, which takes
        a small part of the time.
    """

    test: Literal["tree", "tree-by-size"]
    shapes: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    interpolation: Interpolation
    only_found: bool = False

    @staticmethod
    def energies(latents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the mean over channels of z^2 per scale, (B, h, w)."""
        return tuple(z.float().square().mean(dim=1) for z in latents)

    def on_host(self, energies: Sequence[Tensor], freedoms: Sequence[float]) -> list[Tensor]:
        """Return log10 NFA of each cell of each scale, (B, h, w) float32.

        Parameters
        ----------
        energies : sequence of Tensor
            In the host's memory.
        freedoms : sequence of float
            Per scale, degrees of freedom of the energy of a cell.
        """
        charge = Charge(tuple(h * w for h, w in self.shapes), by_size=self.test == "tree-by-size")
        one = functools.partial(found_map, whole=self.interpolation != "nearest") if self.only_found else tree_map
        scales = []
        for energy, freedom in zip(energies, freedoms, strict=True):
            found = np.stack([one(values, freedom, charge) for values in energy.numpy()])
            scales.append(torch.from_numpy(found.astype(np.float32)))
        return scales

    def joined(self, scales: Sequence[Tensor]) -> Tensor:
        """Return the least of all scales, (B, H, W)."""
        return torch.stack([_resize(m, self.size, self.interpolation, "bilinear") for m in scales]).amin(dim=0)


@dataclass(frozen=True)
class Charge:
    """Log10 of the number of tests that a region is charged, by its area.

    Attributes
    ----------
    cells : tuple of int
        Of each scale.
    by_size : bool
        Regions are charged for shapes of their own size, and not for those of all sizes.
    """

    cells: tuple[int, ...]
    by_size: bool

    def __call__(self, areas: npt.ArrayLike) -> Floats:
        """Return the charges of areas, in cells."""
        if self.by_size:
            return log10_tests_by_size(areas, sum(self.cells))
        return np.full_like(areas, log10_tests(self.cells), dtype=np.float64)

    def least(self, areas: npt.ArrayLike, gains: npt.ArrayLike) -> Floats:
        """Bound log10 NFA from below, of regions of at most so many cells and gains per cell."""
        n, gain = np.asarray(areas, dtype=np.float64), np.asarray(gains, dtype=np.float64)
        if not self.by_size:
            return np.asarray(log10_tests(self.cells) - n * gain)
        each = np.minimum(math.log10(_BETA) - gain, 0)
        return np.asarray(2 * math.log10(sum(self.cells)) + math.log10(_ALPHA) - np.log10(n) + n * each)


def log10_polyominoes(cells: npt.ArrayLike) -> Floats:
    """Return log10 of (about) how many shapes a connected region of so many cells can have."""
    n: Floats = np.asarray(cells, dtype=np.float64)
    number: Floats = math.log10(_ALPHA) + n * math.log10(_BETA) - np.log10(n)
    return number


@functools.lru_cache
def log10_tests(cells: tuple[int, ...]) -> float:
    """Return log10 N_T: polyominoes of any size anywhere on grids of so many cells, one per scale."""
    largest = log10_polyominoes(np.arange(1, max(cells) + 1)) * math.log(10)
    sums = np.logaddexp.accumulate(largest)  # over sizes 1..r, for every r
    return float(np.logaddexp.reduce([math.log(n) + sums[n - 1] for n in cells])) / math.log(10)


def log10_tests_by_size(areas: npt.ArrayLike, cells: int) -> Floats:
    """Return log10 of the weight of regions of each area: positions x sizes x shapes of that size.

    The inverse weights of all regions of all scales sum to at most one, which is what bounds the false alarms.

    Parameters
    ----------
    areas : array_like
        Cells of each region.
    cells : int
        Cells of all scales together.
    """
    return 2 * math.log10(cells) + log10_polyominoes(areas)


@dataclass(frozen=True)
class LevelTree:
    """The connected components of the upper level sets of a map, above some level, as a forest.

    Attributes
    ----------
    parent : (n,) int64
        The component that encloses each one; -1 where there is none. Parents come before their children.
    level : (n,) float64
        Least value inside.
    area : (n,) int64
        Cells inside, those of enclosed components included.
    node : (h, w) int64
        The smallest component around each cell; -1 for none.
    """

    parent: Ints
    level: Floats
    area: Ints
    node: Ints


def level_tree(values: npt.NDArray[Any], above: float = -math.inf) -> LevelTree:
    """Find the components (4-connected) of the upper level sets {values >= t} for all t > `above`.

    Parameters
    ----------
    values : (h, w) array
    above : float
        Components whose least value is not above this are left out.
    """
    height, width = values.shape
    # scikit-image finds wrong neighbours where a side is shorter than 3; cells at -infinity are above nothing.
    missing = ((0, max(0, 3 - height)), (0, max(0, 3 - width)))
    padded = np.pad(values.astype(np.float64), missing, constant_values=-math.inf)
    parents, order = max_tree(padded, connectivity=1)  # type: ignore[no-untyped-call]
    flat, up = padded.ravel(), parents.ravel().astype(np.int64)
    order = order[np.searchsorted(flat[order], above, side="right") :].astype(np.int64)
    root = up[order] == order
    # Of a plateau one cell stands for all, and is the parent of the others.
    first = root | (flat[up[order]] != flat[order])
    cells, others = order[first], order[~first]
    index = np.full(flat.size, -1)
    index[cells] = np.arange(len(cells))
    index[others] = index[up[others]]
    parent = np.where(root[first], -1, index[up[cells]])
    area = np.bincount(index[order], minlength=len(cells)).tolist()
    enclosing = parent.tolist()
    for child in range(len(area) - 1, -1, -1):
        if enclosing[child] >= 0:
            area[enclosing[child]] += area[child]
    node = index.reshape(padded.shape)[:height, :width]
    return LevelTree(parent, flat[cells], np.asarray(area, dtype=np.int64), node)


def clusters(parent: Ints, cost: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Choose the regions to report: along each branch the cheapest, and whole or parts, whichever is cheaper.

    That is the paper's pruning (of a leaf and its ancestors up to the next fork the cheapest stays, in ties the one
    nearest to the leaf) and merging (a fork whose children are all leaves replaces them if it costs no more than the
    cheapest), repeated until nothing changes. Both only ever look at what is above a node, so one pass from the
    leaves to the roots gives the same: a fork that does not replace its children keeps them, and everything that
    encloses it is out.

    Parameters
    ----------
    parent : (n,) int64
        As in :class:`LevelTree`.
    cost : (n,) float
        For example log10 of the probability under noise.

    Returns
    -------
    (n,) bool
        The chosen nodes, none inside another.
    """
    count = len(parent)
    up, price = parent.tolist(), cost.tolist()
    children = np.bincount(parent[parent >= 0], minlength=count).tolist()
    out = [False] * count  # encloses a fork that keeps its children
    chosen = [-1] * count  # the cheapest of the branch so far, while the branch is alive
    least = [math.inf] * count  # the cost of the cheapest child's choice ...
    whose = [-1] * count  # ... and that choice
    for node in range(count - 1, -1, -1):
        above = up[node]
        if not out[node]:
            keeps = least[node] <= price[node] if children[node] == 1 else least[node] < price[node]
            if keeps and children[node] > 1:
                out[node] = True
            else:
                chosen[node] = best = whose[node] if keeps else node
                if above >= 0 and (whose[above] < 0 or price[best] < least[above]):
                    least[above], whose[above] = price[best], best
        if out[node] and above >= 0:
            out[above] = True
    alive = np.asarray(chosen, dtype=np.int64)
    # A branch ends at a root or below a fork that keeps it; the sentinel behind the roots counts as one.
    ends = np.append(np.asarray(out, dtype=bool), True)[parent]
    result = np.zeros(count, dtype=bool)
    result[alive[ends & (alive >= 0)]] = True
    return result


def chernoff_log10_p(level: Floats, area: Ints, channels: float) -> Floats:
    """Bound log10 of the probability that noise has a mean energy of `level` in each of `area` cells.

    Chernoff's bound on the upper tail of chi^2 with `channels` degrees of freedom, to the power of the area. At a
    level of 1 and below, noise exceeds it half of the time: the bound is 0 there.

    Parameters
    ----------
    level : (n,) float64
        Least mean over channels of z^2 in the region.
    area : (n,) int64
        Cells of the region.
    channels : float
        C of the latents, or the degrees of freedom that they have.
    """
    bound = -area * (channels / 2) * _rate(level) / math.log(10)
    return bound.astype(np.float64)


def _rate(level: Floats) -> Floats:
    return np.where(level > 1, level - 1 - np.log(np.maximum(level, 1)), 0.0)


def tree_map(energy: npt.NDArray[Any], channels: float, charge: Callable[[Ints], Floats]) -> Floats:
    """Return log10 NFA per cell of one map.

    Parameters
    ----------
    energy : (h, w) array
        Mean over channels of z^2.
    channels : float
        C of the latents, or the degrees of freedom that they have.
    charge : callable
        From areas to log10 of the number of tests each region is charged.

    Returns
    -------
    (h, w) float64
        Of the chosen region in each of its cells; at most the charge for one cell, which is also the value elsewhere.
    """
    tree = level_tree(energy, above=1.0)
    background = float(charge(np.ones(1, dtype=np.int64))[0])
    cost = charge(tree.area) + chernoff_log10_p(tree.level, tree.area, channels)
    chosen = clusters(tree.parent, cost)
    # Every node leads to the chosen one around it, or to the sentinel behind the roots; index -1 is the sentinel.
    count = len(cost)
    value = np.append(np.minimum(cost, background), background)
    link = np.append(np.where(chosen, np.arange(count), tree.parent), count)
    link[link < 0] = count
    while not np.array_equal(link, following := link[link]):
        link = following
    result: Floats = value[link[tree.node]]
    return result


def found_map(energy: npt.NDArray[Any], channels: float, charge: Charge, *, whole: bool = False) -> Floats:
    """Return what :func:`tree_map` does where that is below 0, and elsewhere anything that is not.

    Regions whose level is too low to be found, were they as large as the map, can be left out: of a region that
    costs at least 0 and one that costs less, prune and merge report the second. So the tree is only made of what
    rises above that level, and only where it is large and high enough.

    Parameters
    ----------
    energy, channels
        As for :func:`tree_map`.
    charge : Charge
    whole : bool
        Where anything may be found, return all that :func:`tree_map` does.
    """
    background = float(charge(np.ones(1, dtype=np.int64))[0])
    if background < 0:
        return tree_map(energy, channels, charge)
    floor = _least_level(channels, charge, energy.size)
    result = np.full(energy.shape, background)
    labels, count = ndimage.label(energy > floor)
    cells = np.flatnonzero(labels)
    if not cells.size:
        return result
    label = labels.ravel()[cells]
    areas = np.bincount(label, minlength=count + 1)[1:]
    peaks = np.maximum.reduceat(energy.ravel()[cells[np.argsort(label, kind="stable")]], np.cumsum(areas) - areas)
    gains = channels / 2 * _rate(peaks.astype(np.float64)) / math.log(10)
    likely = np.flatnonzero(charge.least(areas, gains) < _MARGIN)
    if not likely.size:
        return result
    boxes = ndimage.find_objects(labels)
    work = sum(energy[boxes[index]].size + _CELLS_OF_A_TREE for index in likely)
    if whole or work > energy.size:
        return tree_map(energy, channels, charge)
    for index in likely.tolist():
        box = boxes[index]
        inside = labels[box] == index + 1
        found = tree_map(np.where(inside, energy[box], -math.inf), channels, charge)
        result[box][inside] = found[inside]
    return result


@functools.lru_cache
def _least_level(channels: float, charge: Charge, cells: int) -> float:
    """Return a level, at least 1, up to which no region of `cells` cells or fewer can be found."""
    low, high = 1.0, 2.0

    def out_of_reach(level: float) -> bool:
        gain = channels / 2 * float(_rate(np.asarray(level))) / math.log(10)
        return float(charge.least(cells, gain)) >= _MARGIN

    if not out_of_reach(low):
        return low
    while out_of_reach(high):
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if out_of_reach(middle) else (low, middle)
    return low


def chi2_quantile(p: float) -> float:
    """Return the quantile of chi^2 with one degree of freedom, the law of z^2."""
    if not 0 < p < 1:
        raise HrbenchError(f"quantile is {p}, expected a number between 0 and 1")
    return NormalDist().inv_cdf((1 + p) / 2) ** 2


def window_log10_p(z: Tensor, window: float, quantile: float) -> Tensor:
    """Return log10 of the probability of more candidates in the window around each cell than were seen.

    Candidates are entries whose z^2 reaches the quantile. Their number in the window is averaged over channels.

    Parameters
    ----------
    z : Tensor
        (B, C, h, w).
    window : float
        Width in cells; what is used is the odd width at or below it, at least 3 (1 on a grid of one cell).
    quantile : float
        Of z^2 under the null hypothesis.

    Returns
    -------
    Tensor
        (B, h, w) float32, at least -300.
    """
    if window <= 0:
        raise HrbenchError(f"window is {window}, expected a positive width")
    channels, height, width = z.shape[1:]
    candidates = (z.square() >= chi2_quantile(quantile)).float().sum(dim=1, keepdim=True)
    half = max(int(window // 2), 1)
    rows, columns = min(half, height - 1), min(half, width - 1)  # a reflection needs that many cells
    padded = functional.pad(candidates, (columns, columns, rows, rows), mode="reflect")
    n = (2 * rows + 1) * (2 * columns + 1)
    # Whole numbers up to C * n, exact in float32.
    seen = functional.avg_pool2d(padded, (2 * rows + 1, 2 * columns + 1), stride=1, divisor_override=1).squeeze(1)
    seen = torch.div(seen.round(), channels, rounding_mode="floor").long()
    with np.errstate(divide="ignore"):
        tail = binom.logsf(np.arange(n + 1), n, 1 - quantile) / math.log(10)
    table = torch.from_numpy(np.maximum(tail, _LEAST_LOG10_P).astype(np.float32))
    return table.to(z.device, non_blocking=True)[seen]


def _resize(maps: Tensor, size: tuple[int, int], interpolation: str, smooth: str) -> Tensor:
    if tuple(maps.shape[1:]) == size:
        return maps
    if interpolation == "nearest":
        return functional.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0]
    return functional.interpolate(maps[:, None], size, mode=smooth, align_corners=smooth == "bicubic")[:, 0]
