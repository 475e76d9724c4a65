"""Rims of components against scipy's dilation and erosion."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from hrbench.imaging import find_components, find_rims

SQUARE = np.ones((3, 3), bool)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.sampled_from([4, 8]), st.booleans())
def test_rims_are_what_dilation_adds_and_erosion_takes_away(mask, connectivity, large):
    if large:  # so that defects are few: at the image's border, and not
        mask = np.pad(mask, ((0, 99), (20, 0)))
    components = find_components(mask, connectivity)
    rims = find_rims(mask, components)

    eroded = ndimage.binary_erosion(mask, SQUARE, border_value=1)
    assert np.array_equal(rims.inner, ~eroded.ravel()[components.pixels])

    labels = np.zeros(mask.size, int)
    labels[components.pixels] = np.repeat(np.arange(1, components.areas.size + 1), components.areas)
    owners = np.repeat(np.arange(1, components.areas.size + 1), rims.counts)
    found = np.zeros(mask.size, int)
    found[rims.outer] = owners
    assert np.unique(rims.outer).size == rims.outer.size
    assert all((np.diff(rims.outer[owners == number]) > 0).all() for number in np.unique(owners))
    expected = np.zeros(mask.shape, int)
    for number in range(components.areas.size, 0, -1):  # the first one that is near keeps a pixel
        near = ndimage.binary_dilation((labels == number).reshape(mask.shape), SQUARE)
        expected[near & ~mask] = number
    assert np.array_equal(found, expected.ravel())


def test_rims_of_one_pixel_and_at_the_border():
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    rims = find_rims(mask, find_components(mask))
    assert rims.counts.tolist() == [8]
    assert rims.inner.tolist() == [True]

    mask[:] = False
    mask[:3, :3] = True  # in a corner: only what faces the image is lost
    rims = find_rims(mask, find_components(mask))
    assert rims.counts.tolist() == [7]
    assert np.flatnonzero(rims.inner).tolist() == [2, 5, 6, 7, 8]
