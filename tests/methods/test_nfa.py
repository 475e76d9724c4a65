"""The a-contrario test against a literal implementation of its procedure, closed forms, and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats

from hrbench._util.resources import methods_package
from hrbench.errors import HrbenchError

methods_package()
from hrbench.methods import _nfa  # noqa: E402

MCAIT = ((816, 28), (192, 14))  # channels and side of both scales


# --- A slow, literal implementation of prune and merge, on sets of cells ---


@dataclass(eq=False)
class Node:
    cells: frozenset
    cost: float
    parent: Node | None = None
    children: list = field(default_factory=list)


def chernoff(cells, values, channels, gated):
    level = min(values[cell] for cell in cells)
    if gated and level <= 1:
        return 0.0
    return -len(cells) * channels / 2 * (level - 1 - math.log(level)) / math.log(10)


def components(values):
    """Every connected component of every upper level set, once."""
    found = set()
    for level in np.unique(values):
        labels, count = ndimage.label(values >= level)
        found |= {frozenset(map(tuple, np.argwhere(labels == k).tolist())) for k in range(1, count + 1)}
    return found


def oracle(values, cost):
    """Return the chosen regions of procedure 1 and 2 as {cells: cost}."""
    nodes = [Node(cells, cost(cells)) for cells in sorted(components(values), key=len)]
    for i, node in enumerate(nodes):
        node.parent = next((other for other in nodes[i + 1 :] if node.cells < other.cells), None)
        if node.parent:
            node.parent.children.append(node)
    alive = set(nodes)

    def delete(node):
        for child in node.children:
            child.parent = node.parent
        if node.parent:
            node.parent.children.remove(node)
            node.parent.children.extend(node.children)
        alive.remove(node)

    def prune():
        for leaf in [n for n in nodes if n in alive and not n.children]:
            branch = [leaf]
            while branch[-1].parent and len(branch[-1].parent.children) == 1:
                branch.append(branch[-1].parent)
            best = min(branch, key=lambda n: n.cost)  # the first of equal ones: nearest to the leaf
            for node in branch:
                if node is not best:
                    delete(node)

    def merge():
        changed = False
        for node in [n for n in nodes if n in alive]:
            leaves = len(node.children) >= 2 and not any(child.children for child in node.children)
            if leaves and node.cost <= min(child.cost for child in node.children):
                for child in list(node.children):
                    delete(child)
                changed = True
        return changed

    prune()
    while merge():
        prune()
    prune()
    return {n.cells: n.cost for n in alive if not n.children}


def painted(values, regions):
    result = np.zeros(values.shape)
    for cells, cost in regions.items():
        for cell in cells:
            result[cell] = cost
    return result


def free(areas):
    return np.zeros(len(areas))


fields = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([0, 2, 5, 12]))


def random_field(drawn, scale):
    """Noise, smooth or rough, with plateaus if its values are rounded to a few steps."""
    rows, columns, seed, steps = drawn
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, scale / 2, (rows, columns)) + 0.05
    if seed % 2:
        values = ndimage.uniform_filter(values, 3)
    return np.ceil(values * steps) / steps if steps else values


@given(fields)
def test_tree_is_the_set_of_components_of_upper_level_sets(drawn):
    values = random_field(drawn, 1.0)
    tree = _nfa.level_tree(values)
    cells = [set() for _ in tree.parent]
    for cell, node in np.ndenumerate(tree.node):
        while node >= 0:
            cells[node].add(cell)
            node = tree.parent[node]
    assert set(map(frozenset, cells)) == components(values)
    assert len(cells) == len(components(values))
    assert tree.area.tolist() == [len(c) for c in cells]
    assert tree.level.tolist() == [min(values[c] for c in inside) for inside in cells]
    assert all(parent < node for node, parent in enumerate(tree.parent))


@given(fields, st.sampled_from([1, 7, 100]), st.sampled_from([1.0, 3.0]))
def test_tree_map_is_that_of_the_literal_procedure(drawn, channels, scale):
    values = random_field(drawn, scale)
    expected = painted(values, oracle(values, lambda cells: chernoff(cells, values, channels, gated=True)))
    np.testing.assert_allclose(_nfa.tree_map(values, channels, free), expected, rtol=1e-9, atol=1e-9)


@given(fields, st.sampled_from([7, 100]))
def test_tree_map_by_size_is_that_of_the_literal_procedure(drawn, channels):
    values = random_field(drawn, 2.0)

    def charge(areas):
        return _nfa.log10_tests_by_size(areas, 60)

    def cost(cells):
        p = chernoff(cells, values, channels, gated=True)
        return p + float(charge(np.array([len(cells)]))[0]) if p < 0 else math.inf

    top = float(charge(np.array([1]))[0])
    expected = np.full(values.shape, top)
    for cells, found in oracle(values, cost).items():
        for cell in cells:
            expected[cell] = min(found, top)
    np.testing.assert_allclose(_nfa.tree_map(values, channels, charge), expected, rtol=1e-9)


@given(fields, st.sampled_from([3, 40, 300.5]), st.booleans(), st.booleans(), st.sampled_from([1.0, 1.5, 3.0]))
def test_what_is_found_is_found_without_the_rest(drawn, channels, by_size, whole, scale):
    values = random_field(drawn, scale)
    charge = _nfa.Charge((values.size, -(-values.size // 4)), by_size)
    expected, found = _nfa.tree_map(values, channels, charge), _nfa.found_map(values, channels, charge, whole=whole)
    np.testing.assert_array_equal(np.minimum(found, 0), np.minimum(expected, 0))
    if whole and (expected < 0).any():
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("by_size", [True, False])
def test_spots_in_noise_are_found_without_the_rest(by_size, monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.chisquare(84, (128, 128)) / 84
    for row, column, side, factor in ((5, 90, 2, 3), (60, 20, 5, 1.5), (100, 100, 9, 1.3), (0, 0, 3, 2)):
        values[row : row + side, column : column + side] *= factor
    values[:, 60:] *= 40 ** (not by_size)  # so that the test for all sizes finds something, too
    charge = _nfa.Charge((128 * 128,), by_size)
    expected = _nfa.tree_map(values, 84, charge)
    assert 0 < np.count_nonzero(expected < 0) < values.size
    cells = []
    tree_map = _nfa.tree_map
    monkeypatch.setattr(_nfa, "tree_map", lambda energy, *args: cells.append(energy.size) or tree_map(energy, *args))
    found = _nfa.found_map(values, 84, charge)
    np.testing.assert_array_equal(np.minimum(found, 0), np.minimum(expected, 0))
    assert sum(cells) < values.size / (50 if by_size else 1.1)


@given(st.integers(0, 10_000), st.booleans())
def test_costs_are_bounded_from_below(seed, by_size):
    rng = np.random.default_rng(seed)
    charge = _nfa.Charge((2000, 500), by_size)
    gain = rng.exponential(1.0, 50)
    areas = rng.integers(1, 2000, 50)
    least = charge.least(areas, gain)
    for area in (np.ones(50, int), areas, rng.integers(1, areas + 1)):
        assert (charge(area) - area * gain * rng.uniform(0, 1, 50) >= least - 1e-9).all()


@given(st.integers(0, 10_000))
def test_choice_on_any_costs(seed):
    """Costs need not come from levels: prune and merge see only the tree."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(30).reshape(5, 6).astype(float)
    prices = rng.integers(-6, 1, 31).astype(float)
    tree = _nfa.level_tree(values)
    chosen = _nfa.clusters(tree.parent, prices[tree.area])
    regions = oracle(values, lambda cells: prices[len(cells)])
    found = {frozenset(map(tuple, np.argwhere(values >= tree.level[i]).tolist())) for i in np.flatnonzero(chosen)}
    assert sorted(tree.area[chosen].tolist()) == sorted(map(len, regions))
    assert all(any(cells <= whole for whole in found) for cells in regions)


# --- Toys ---


def test_small_regions_merge_stay_apart_or_are_gated():
    def toy(background, region, level, *peaks):
        values = np.full((6, 6), float(background))
        values[region] = level
        for row, column, peak in peaks:
            values[row, column] = peak
        return values

    block, wide = np.s_[1:3, 1:3], np.s_[1:3, 1:4]
    one = _nfa.tree_map(toy(1, block, 3, (1, 1, 4)), 100, free)
    assert one[block] == pytest.approx(-78.29, abs=5e-3)
    assert np.count_nonzero(one) == 4
    merged = _nfa.tree_map(toy(1, wide, 3, (1, 1, 5), (2, 3, 5)), 100, free)
    assert merged[wide] == pytest.approx(-117.44, abs=5e-3)
    assert np.count_nonzero(merged) == 6
    kept = _nfa.tree_map(toy(1, wide, 1.2, (1, 1, 5), (2, 3, 5)), 100, free)
    assert [kept[1, 1], kept[2, 3]] == pytest.approx([-51.91] * 2, abs=5e-3)
    assert np.count_nonzero(kept) == 2
    weak = toy(0.5, np.s_[1:2, 1:2], 4)
    gated = _nfa.tree_map(weak, 100, free)
    assert gated[1, 1] == pytest.approx(-35.04, abs=5e-3)
    assert np.count_nonzero(gated) == 1
    (whole,) = oracle(weak, lambda cells: chernoff(cells, weak, 100, gated=False)).values()
    assert whole == pytest.approx(-150.99, abs=5e-3)  # what the gate is for


def test_a_flat_map_has_no_region():
    for value in (0.0, 0.5, 1.0):
        assert not _nfa.tree_map(np.full((4, 5), value), 10, free).any()
    above = _nfa.tree_map(np.full((4, 5), 2.0), 10, free)
    assert above == pytest.approx(np.full((4, 5), -20 * 5 * (1 - math.log(2)) / math.log(10)))
    assert _nfa.tree_map(np.full((1, 1), 2.0), 10, free).shape == (1, 1)


def test_deep_trees_need_no_recursion():
    # A slope of 10,000 steps, each enclosing the next: the weakest call has the largest area.
    slope = np.linspace(2.0, 1.001, 10_000).reshape(100, 100)
    tree = _nfa.level_tree(slope, above=1.0)
    assert tree.area.tolist() == list(range(10_000, 0, -1))
    assert _nfa.clusters(tree.parent, -tree.area.astype(float)).tolist() == [True] + [False] * 9_999
    assert len(np.unique(_nfa.tree_map(slope, 10, free))) == 2


# --- Number of tests, tail bound ---


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((28, 14), 476.924),
        ((14,), 118.949),
        ((32, 16), 623.036),
        ((64, 32, 16), 2493.272),
        ((112, 56, 28), 7636.422),
    ],
)
def test_number_of_tests_has_its_closed_form(sides, expected):
    cells = tuple(side**2 for side in sides)
    assert _nfa.log10_tests(cells) == pytest.approx(expected, abs=1e-3)
    assert _nfa.log10_tests(cells) == pytest.approx(0.6088009 * cells[0] - 0.3763, abs=1e-3)


def test_polyominoes_are_never_undercounted():
    exact = np.array([1, 2, 6, 19, 63, 216, 760, 2725])
    found = 10 ** _nfa.log10_polyominoes(np.arange(1, 9))
    assert found == pytest.approx([1.29, 2.62, 7.08, 21.6, 70.1, 237, 827, 2939], rel=5e-3)
    assert (found > exact).all()


def test_tests_by_size_share_one_false_alarm():
    """Sum over all regions of 1 / weight is at most one: the bound on the false alarms."""
    cells = (784, 196)
    total = 0.0
    for n in cells:
        sizes = np.arange(1, n + 1)
        regions = math.log10(n) + _nfa.log10_polyominoes(sizes)
        total += (10 ** (regions - _nfa.log10_tests_by_size(sizes, sum(cells)))).sum()
    assert total <= 1


@pytest.mark.parametrize(
    ("channels", "level", "bound", "tail"),
    [(816, 1.2, -3.13, -4.17), (816, 1.5, -16.75, -18.16), (816, 3, -159.7, -161.7), (192, 1.5, -3.94, -5.06)],
)
def test_chernoff_bounds_the_tail(channels, level, bound, tail):
    found = float(_nfa.chernoff_log10_p(np.array([level]), np.array([1]), channels)[0])
    assert found == pytest.approx(bound, abs=0.05)
    assert stats.chi2.logsf(level * channels, channels) / math.log(10) == pytest.approx(tail, abs=0.05)


@given(st.floats(1.0, 8.0), st.integers(1, 2000))
def test_chernoff_is_never_too_significant(level, channels):
    found = float(_nfa.chernoff_log10_p(np.array([level]), np.array([1]), channels)[0])
    assert found >= stats.chi2.logsf(level * channels, channels) / math.log(10) - 1e-9
    assert found * 3 == pytest.approx(float(_nfa.chernoff_log10_p(np.array([level]), np.array([3]), channels)[0]))


def test_nothing_is_significant_at_or_below_the_mean():
    assert not _nfa.chernoff_log10_p(np.array([0.0, 0.5, 1.0]), np.array([1, 5, 9]), 100).any()


# --- Windows ---


def test_chi2_quantiles_are_those_of_the_tables():
    assert _nfa.chi2_quantile(0.9) == pytest.approx(2.70554, abs=1e-5)
    assert _nfa.chi2_quantile(0.5) == pytest.approx(0.45494, abs=1e-5)
    assert _nfa.chi2_quantile(0.7) == pytest.approx(stats.chi2.ppf(0.7, 1))
    with pytest.raises(HrbenchError, match="quantile is 1, expected"):
        _nfa.chi2_quantile(1)


@pytest.mark.parametrize(("window", "quantile", "best"), [(5, 0.9, -1.9), (7, 0.5, -2.4)])
def test_windows_on_noise_score_as_expected(window, quantile, best):
    torch.manual_seed(0)
    z = [torch.randn(2, channels, side, side) for channels, side in MCAIT]
    score = -_nfa.log10_nfa(z, test="window", grid=(112, 112), window=window, quantile=quantile)
    assert score.isfinite().all()
    assert float(score.max()) == pytest.approx(best, abs=0.25)


def test_full_windows_stay_finite():
    z = [torch.full((1, 3, 8, 8), 9.0), torch.full((1, 4, 4, 4), 9.0)]
    found = _nfa.log10_nfa(z, test="window", grid=(64, 64))
    torch.testing.assert_close(found, torch.full((1, 64, 64), math.log10(80) - 600), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("window", "width"), [(5.0, 5), (2.5, 3), (1.25, 3), (7.0, 7)])
def test_windows_count_what_exceeds_the_quantile(window, width):
    torch.manual_seed(1)
    z = torch.randn(1, 4, 10, 9)
    found = _nfa.window_log10_p(z, window, 0.9)[0]
    half = width // 2
    hot = np.pad((z[0].numpy() ** 2 >= 2.70554).mean(axis=0), half, mode="reflect")
    for row, column in ((0, 0), (4, 5), (9, 8)):
        seen = hot[row : row + width, column : column + width].sum()
        expected = stats.binom.logsf(math.floor(seen + 1e-6), width**2, 0.1) / math.log(10)
        assert float(found[row, column]) == pytest.approx(max(expected, -300), rel=1e-4, abs=1e-6)


def test_windows_fit_small_grids():
    for shape in ((1, 1), (1, 6), (2, 3)):
        assert _nfa.window_log10_p(torch.zeros(1, 2, *shape), 5, 0.9).shape == (1, *shape)
    with pytest.raises(HrbenchError, match="window is 0"):
        _nfa.window_log10_p(torch.zeros(1, 2, 4, 4), 0, 0.9)


# --- False alarms and detections ---


def noise_map(rng, test, spread=1.0, plant=None):
    """Return the best score on MCaiT's grids of energies drawn from their law under noise, z scaled by `spread`."""
    scales = []
    for index, (channels, side) in enumerate(MCAIT):
        energy = spread**2 * rng.chisquare(channels, (side, side)) / channels
        if plant and index == 0:
            blob, level = plant
            energy[5 : 5 + blob, 7 : 7 + blob] *= level
        if test == "tree":
            number = _nfa.log10_tests((784, 196))
            scales.append(_nfa.tree_map(energy, channels, lambda a, n=number: np.full(len(a), n)).min())
        else:
            scales.append(_nfa.tree_map(energy, channels, lambda a: _nfa.log10_tests_by_size(a, 980)).min())
    return -min(scales)


def test_no_false_alarm_on_noise():
    rng = np.random.default_rng(0)
    best = [noise_map(rng, "tree") for _ in range(100)]
    assert max(best) < -470
    assert np.median(best) == pytest.approx(-474.7, abs=0.5)


def test_few_false_alarms_on_noise_by_size():
    """At most one per image is promised; on noise there are far fewer."""
    rng = np.random.default_rng(0)
    best = np.array([noise_map(rng, "tree-by-size") for _ in range(100)])
    assert (best > 0).mean() <= 0.05
    assert best.max() > -3  # and the test is not idle either: the background is at -6.1


@pytest.mark.parametrize(
    ("blob", "level", "expected"), [(1, 4.84, -146), (1, 6.25, 104), (2, 2.25, -176), (2, 3.24, 230), (3, 2.25, 161)]
)
def test_planted_blobs_score_as_expected(blob, level, expected):
    rng = np.random.default_rng(0)
    found = [noise_map(rng, "tree", plant=(blob, level)) for _ in range(10)]
    # `expected` is of a single draw, and the weakest cell of a region counts: 2 sigma are 80 at one cell.
    assert np.mean(found) == pytest.approx(expected, abs=90)
    assert np.mean([(score > 0) == (expected > 0) for score in found]) >= 0.9


def test_score_grows_with_area_and_level():
    rng = np.random.default_rng(1)
    for test in ("tree", "tree-by-size"):
        by_level = [noise_map(rng, test, plant=(2, level)) for level in (2, 3, 4, 6)]
        by_area = [noise_map(rng, test, plant=(blob, 4)) for blob in (1, 2, 3, 4)]
        assert by_level == sorted(by_level)
        assert by_area == sorted(by_area)


@pytest.mark.parametrize(("channels", "cells", "published", "by_size"), [(816, 784, 5.37, 1.28), (84, 4096, 143, 2.18)])
def test_least_energy_of_a_single_cell(channels, cells, published, by_size):
    """Where one cell becomes significant: what charging by size is for."""
    all_cells = {784: (784, 196), 4096: (4096, 1024, 256)}[cells]

    def least(charge):
        low, high = 1.0, 1000.0
        for _ in range(60):
            middle = (low + high) / 2
            p = float(_nfa.chernoff_log10_p(np.array([middle]), np.array([1]), channels)[0])
            low, high = (low, middle) if p + charge < 0 else (middle, high)
        return high

    assert least(_nfa.log10_tests(all_cells)) == pytest.approx(published, rel=5e-3)
    assert least(float(_nfa.log10_tests_by_size(1, cells))) == pytest.approx(by_size, abs=6e-3)
    # Charged for the cells of all scales, which is what the bound needs, it is hardly more.
    assert least(float(_nfa.log10_tests_by_size(1, sum(all_cells)))) == pytest.approx(by_size, abs=0.04)


def test_overdispersed_noise_raises_the_score():
    rng = np.random.default_rng(0)
    assert noise_map(rng, "tree", 0.95) < -474
    assert noise_map(rng, "tree", 1.05) == pytest.approx(-415, abs=60)
    assert noise_map(rng, "tree", 1.2) > 0  # documented: a latent that is too wide is an anomaly


# --- The maps ---


def spot(batch=2):
    """Noise at two scales with a strong spot in the first image, at rows 4-7 and columns 8-11."""
    torch.manual_seed(0)
    fine, coarse = torch.randn(batch, 40, 16, 16), torch.randn(batch, 80, 8, 8)
    fine[0, :, 4:8, 8:12] *= 8
    coarse[0, :, 2:4, 4:6] *= 8
    return [fine, coarse]


@pytest.mark.parametrize("test", get_args(_nfa.NfaTest))
@pytest.mark.parametrize("interpolation", get_args(_nfa.Interpolation))
def test_a_spot_is_found_where_it_is(test, interpolation):
    found = _nfa.log10_nfa(spot(), test=test, interpolation=interpolation)
    assert found.shape == (2, 16, 16)
    assert found.dtype == torch.float32
    mask = found < 0
    assert not mask[1].any()
    assert mask[0, 5:7, 9:11].all()
    if test != "window":
        expected = torch.zeros(16, 16, dtype=torch.bool)
        expected[4:8, 8:12] = True
        assert (mask[0] & expected).sum() == 16
        if interpolation == "nearest":
            assert torch.equal(mask[0], expected)
        assert float(found[1].max()) == pytest.approx(
            _nfa.log10_tests((256, 64)) if test == "tree" else float(_nfa.log10_tests_by_size(1, 320)), rel=1e-5
        )


@pytest.mark.parametrize("test", get_args(_nfa.NfaTest))
def test_a_batch_is_its_images(test):
    z = spot(3)
    together = _nfa.log10_nfa(z, test=test, grid=(40, 48))
    assert together.shape == (3, 40, 48)
    alone = _nfa.log10_nfa([s[2:3] for s in z], test=test, grid=(40, 48))
    assert torch.equal(alone, together[2:3])


def test_bilinear_dilates_and_nearest_does_not():
    z = [s[:1] for s in spot(1)]
    areas = {
        kind: int((_nfa.log10_nfa(z, test="tree-by-size", grid=(128, 128), interpolation=kind) < 0).sum())
        for kind in get_args(_nfa.Interpolation)
    }
    assert areas["nearest"] == 32 * 32
    assert areas["bilinear"] > areas["nearest"]
