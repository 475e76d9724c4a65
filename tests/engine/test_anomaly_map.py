"""From merged maps to the anomaly map on the host: the check of scores, fusion, and what is not copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hrbench import HrbenchError
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import finish, finish_looks
from hrbench.engine.fusion import Fusion
from hrbench.engine.inference import NativeMaps
from hrbench.method import Method

SAMPLE = Sample("test/7.png", None, None, 0, "good", "test", "bolt")
FUSION = Fusion(("a", "b"), (0.0, 0.0), (1.0, 1.0))


def merged(*maps, decision=None):
    return NativeMaps(SAMPLE, tuple({"m": map_} for map_ in maps), decision, ((1.0, 3.0, 0.5),))


def test_the_map_is_handed_out_without_a_copy():
    map_, decided = torch.rand(5, 7), torch.rand(5, 7) > 0.5
    found = finish(Method(), merged(map_, decision=decided))
    assert found.scores().ctypes.data == map_.data_ptr()
    assert found.decision().ctypes.data == decided.data_ptr()
    assert found.decision().dtype == bool
    assert found.seconds >= 1.0
    assert finish(Method(), merged(map_)).decision() is None


def test_several_looks_are_fused():
    maps = torch.rand(2, 5, 7)
    expected = (torch.nn.functional.softplus(maps[0]) * torch.nn.functional.softplus(maps[1])).sqrt()
    np.testing.assert_allclose(finish(Method(), merged(*maps), FUSION).scores(), expected, rtol=1e-6)
    assert [torch.equal(a, b) for a, b in zip(finish_looks(Method(), merged(*maps)), maps, strict=True)] == [True, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_one_pixel_that_is_not_finite_is_enough(bad, place):
    map_ = torch.rand(5, 7)
    map_.view(-1)[place] = bad
    message = r"test/7\.png: Method gave an anomaly map with NaN or infinite pixels, expected finite scores"
    with pytest.raises(HrbenchError, match=message):
        finish(Method(), merged(map_)).scores()
    fused = finish(Method(), merged(torch.rand(5, 7), map_), FUSION)
    with pytest.raises(HrbenchError, match=message):  # though the fused map of minus infinity is finite
        fused.scores()
    with pytest.raises(HrbenchError, match=message):
        finish_looks(Method(), merged(torch.rand(5, 7), map_))


def test_a_map_of_another_size_is_named():
    class Halving(Method):
        def finish(self, maps):
            return maps["m"][::2]

    with pytest.raises(HrbenchError, match=r"Halving\.finish gave .* of shape \(3, 7\) of .*, expected .* \(5, 7\)"):
        finish(Halving(), merged(torch.rand(5, 7)))
