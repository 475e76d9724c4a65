"""Compatibility protocols against literal re-statements of what the published codes compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from metrics import oracle
from metrics.test_evaluate import random_case, rows

import hrbench
from hrbench.imaging.resample import bilinear, nearest
from hrbench.protocol import list_protocols


def equal_rank(maps, masks, limit, chosen, n=99):
    """99 thresholds at equal ranks of the normal scores, rate from the rank, strictly above, plus (1, 1)."""
    normal = np.sort(np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)]))
    parts = [part for part, keep in zip(oracle.components(masks), chosen, strict=True) if keep]
    points = []
    for i in range(n):
        t = normal[round((1 - i / (n - 1)) * (normal.size - 1))]
        points.append((i / (n - 1), np.mean([np.mean(maps[index][part] > t) for index, part in parts])))
    return oracle.area_up_to(np.array([*points, (1.0, 1.0)]), limit)


def uniform(maps, masks, limit, n=200):
    """200 equal steps from the lowest to the highest score, strictly above, cut below the limit and rescaled."""
    scores = np.concatenate([m.ravel() for m in maps])
    normal = np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)])
    low, high = scores.min(), scores.max()
    points = []
    for t in (low + (high - low) * np.arange(n) / n).astype(scores.dtype):
        overlap = np.mean([np.mean(maps[index][part] > t) for index, part in oracle.components(masks)])
        points.append((np.mean(normal > t), overlap))
    kept = np.array(sorted(point for point in points if point[0] < limit))
    x = kept[:, 0] / kept[:, 0].max()
    return float(np.sum((x[1:] - x[:-1]) * (kept[1:, 1] + kept[:-1, 1]) / 2))


@pytest.mark.parametrize("levels", [None, 25])
@pytest.mark.parametrize("exact", [True, False])
def test_equal_ranks(levels, exact):
    maps, masks = random_case(23, images=8, levels=levels)
    frame = hrbench.evaluate(maps, masks, protocol="l2bt", exact=exact).values
    areas = np.array([part.sum() for _, part in oracle.components(masks)])
    for subset, chosen in {"all": areas > 0, "q2": areas <= np.quantile(areas, 0.5)}.items():
        for limit, (value, bound) in rows(frame, "aupro", subset).items():
            expected = equal_rank(maps, masks, limit, chosen)
            assert abs(value - expected) <= bound + 1e-12
            assert bound == 0 if exact else bound < 0.2


def test_at_one_percent_the_published_curve_has_two_points():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(300, 300)) for _ in range(3)]
    mask = np.zeros((300, 300), bool)
    mask[20:60, 20:60] = True
    maps[0][mask] += 3
    masks = [mask, ~np.ones_like(mask), ~np.ones_like(mask)]
    value = hrbench.evaluate(maps, masks, protocol="l2bt", exact=True).value("aupro", fpr_limit=0.01)
    normal = np.sort(np.concatenate([m[~k] for m, k in zip(maps, masks, strict=True)]))
    first = np.mean(maps[0][mask] > normal[-1])
    second = np.mean(maps[0][mask] > normal[round(97 / 98 * (normal.size - 1))])
    assert value == pytest.approx(0.51 * first + 0.49 * second, abs=1e-9)


@pytest.mark.parametrize("levels", [None, 25])
@pytest.mark.parametrize("exact", [True, False])
def test_uniform_thresholds(levels, exact):
    maps, masks = random_case(29, images=8, levels=levels)
    frame = hrbench.evaluate(maps, masks, protocol="rd4ad", exact=exact).values
    ((value, bound),) = rows(frame, "aupro").values()
    if exact:
        assert value == pytest.approx(uniform(maps, masks, 0.30), abs=1e-9)
        assert bound == 0
    else:
        assert value == pytest.approx(uniform(maps, masks, 0.30), abs=0.02)
        assert np.isnan(bound)  # not certified


def test_mvtec_is_the_exact_area():
    maps, masks = random_case(31)
    one = hrbench.evaluate(maps, masks, protocol="mvtec", exact=True).value("aupro", fpr_limit=0.3)
    assert one == pytest.approx(oracle.aupro(maps, masks, 0.3), abs=1e-9)


@pytest.mark.parametrize("size", [(256, 256), (7, 31), (300, 20)])
def test_resampling_equals_torch(size):
    scores = np.random.default_rng(0).random((61, 90)).astype(np.float32)
    tensor = torch.from_numpy(scores)[None, None]
    expected = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(bilinear(scores, size), expected, atol=1e-5)
    mask = scores > 0.5
    expected = torch.nn.functional.interpolate((tensor > 0.5).float(), size, mode="nearest")[0, 0]
    assert np.array_equal(nearest(mask, size), expected.numpy() > 0)


def test_low_resolution_loses_tiny_defects():
    rng = np.random.default_rng(0)
    mask = np.zeros((1024, 1024), bool)
    mask[100:160, 100:160] = True
    mask[501:503, 501:503] = True
    scores = rng.random(mask.shape) + mask
    native = hrbench.evaluate([scores], [mask])
    low = hrbench.evaluate([scores], [mask], protocol="lowres256")
    assert len(native.components) == 2
    assert len(low.components) == 1
    assert low.components["area"].tolist() == [15 * 15]


def test_every_shipped_protocol_scores():
    maps, masks = random_case(37)
    for name in list_protocols():
        frame = hrbench.evaluate(maps, masks, protocol=name).values
        assert frame["value"].dropna().between(0, 1).all(), name
