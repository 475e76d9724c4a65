import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from hrbench.imaging.components import find_components


def check(mask, connectivity):
    structure = np.ones((3, 3)) if connectivity == 8 else None
    labels, number = ndimage.label(mask, structure)
    found = find_components(mask, connectivity)
    assert found.areas.tolist() == [int((labels == k).sum()) for k in range(1, number + 1)]
    parts = np.split(found.pixels, np.cumsum(found.areas)[:-1]) if number else []
    for k, part in enumerate(parts, start=1):
        assert np.array_equal(part, np.flatnonzero(labels == k))
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    assert [tuple(box) for box in found.boxes.tolist()] == boxes


@pytest.mark.parametrize("connectivity", [4, 8])
@given(mask=arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_components_are_those_of_scipy(mask, connectivity):
    check(mask, connectivity)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("blur", [0, 1, 3])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.4, 0.6, 1.0])
def test_components_of_larger_masks_are_those_of_scipy(share, blur, connectivity):
    noise = ndimage.gaussian_filter(np.random.default_rng(3).random((150, 170)), blur)
    check(noise <= np.quantile(noise, share), connectivity)


def test_a_long_scratch_is_one_component():
    mask = np.zeros((3000, 3000), dtype=bool)
    along = np.arange(3000)
    for shift in range(3):
        mask[along, np.minimum(along + shift, 2999)] = True
    assert find_components(mask).areas.tolist() == [3 * 3000 - 3]
    assert find_components(mask).boxes.tolist() == [[0, 0, 3000, 3000]]


def test_more_components_than_sixteen_bits_count():
    mask = np.zeros((600, 600), dtype=bool)
    mask[::2, ::2] = True
    found = find_components(mask)
    assert found.areas.size == 90_000
    assert found.areas.max() == 1


def test_an_empty_mask_has_no_components():
    found = find_components(np.zeros((4, 5), dtype=bool))
    assert (found.pixels.size, found.areas.size, found.boxes.shape) == (0, 0, (0, 4))
