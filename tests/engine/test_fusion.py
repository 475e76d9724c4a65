"""Fusing the maps of views: against a closed form, and what it must not depend on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrbench.engine.fusion import Fusion

SIZE = (40, 60)


def normals(*, views=2, images=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randn(SIZE, generator=draw) * 10**v for v in range(views)] for _ in range(images)]


def test_the_closed_form():
    held_out = normals(views=3)
    fusion = Fusion.of(["a", "b", "c"], held_out)
    maps = normals(views=3, images=1, seed=1)[0]
    expected = np.ones(SIZE)
    for view in range(3):
        pixels = np.stack([image[view].double().numpy() for image in held_out])
        centre = np.median(pixels)
        unit = np.quantile(pixels, 0.99) - centre
        expected *= np.log1p(np.exp((maps[view].double().numpy() - centre) / unit)) ** (1 / 3)
    np.testing.assert_allclose(fusion(maps).numpy(), expected, rtol=1e-5)


@given(factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), view=st.integers(0, 1))
def test_the_scale_and_zero_of_a_view_do_not_matter(factor, shift, view):
    def changed(maps):
        return [m * factor + factor * shift if index == view else m for index, m in enumerate(maps)]

    held_out, (test,) = normals(), normals(images=1, seed=1)
    expected = Fusion.of("ab", held_out)(test)
    found = Fusion.of("ab", [changed(maps) for maps in held_out])(changed(test))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_constant_maps_stay_constant_and_rise_with_every_view():
    fusion = Fusion.of("ab", [[torch.full(SIZE, 0.7), torch.full(SIZE, -3.0)]])
    assert fusion.units == (1.0, 1.0)
    same = fusion([torch.full(SIZE, 0.7), torch.full(SIZE, -3.0)])
    torch.testing.assert_close(same, torch.full(SIZE, math.log(2)))
    for other in ([0.8, -3.0], [0.7, -2.9]):
        higher = fusion([torch.full(SIZE, value) for value in other])
        assert len(higher.unique()) == 1
        assert float(higher[0, 0]) > float(same[0, 0])


def test_a_peak_in_any_view_lands_where_it_was_and_strong_ones_keep_their_order():
    held_out = normals()
    fusion = Fusion.of("ab", held_out)
    for view in range(2):
        maps = normals(images=1, seed=2)[0]
        maps[view][12, 34] = 1e4
        assert divmod(int(fusion(maps).argmax()), SIZE[1]) == (12, 34)
    steps = torch.linspace(5e3, 1e6, 400)[None]
    assert (fusion([steps, steps * 10]).diff() > 0).all()
    far = torch.tensor([[-1e6, -50.0, 0.0]])
    assert fusion([far, far * 10]).isfinite().all()


@pytest.mark.parametrize("rare", [0, 1])
def test_maps_that_are_flat_but_for_little_have_the_maximum_as_unit(rare):
    flat = torch.zeros(100, 100)
    flat[50, 50] = 8.0 * rare
    assert Fusion.of("a", [[flat]]).units == ((8.0,) if rare else (1.0,))


def test_large_maps_are_looked_at_on_a_grid():
    fusion = Fusion.of("a", [[torch.arange(300.0).expand(1000, 300)]])  # every eighth row, third column
    assert fusion.centres[0] == pytest.approx(150, abs=3)
    assert fusion.units[0] == pytest.approx(0.49 * 300, abs=4)


def test_the_record_is_read_back():
    fusion = Fusion.of(["whole:32", "tiled:32:8"], normals())
    assert Fusion.read(json.loads(json.dumps(fusion.record()))) == fusion
