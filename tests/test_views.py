"""Views: coverage, seams, geometry, for any size (property-based)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrbench import HrbenchError
from hrbench.views import Canvas, FusedView, View, parse_view, tile_starts, to_unit

SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
VIEWS = st.sampled_from(
    ["whole:32", "whole:24x40", "whole:32:square", "tiled:32:8", "tiled:32:0", "tiled:16:15", "tiled:32:8@0.5"]
)


def ramp_image(size):
    """An image whose red and green channels tell the pixel's row and column."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = np.arange(size[0])[:, None]
    image[..., 1] = np.arange(size[1])[None]
    return image


@given(length=st.integers(1, 300), tile=st.integers(1, 80), data=st.data())
def test_tiles_cover_every_pixel_and_stay_inside(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(max(length, tile), bool)
    for start in starts:
        assert 0 <= start <= max(0, length - tile)
        covered[start : start + tile] = True
    assert covered.all()
    assert all(b - a <= tile - overlap for a, b in pairwise(starts))
    assert len(set(starts)) == len(starts)


@given(size=SIZES, view=VIEWS, stride=st.sampled_from([1, 4, 7]))
def test_constant_tiles_merge_to_the_constant(size, view, stride):
    view = View.parse(view)
    placement = view.place(size)
    shape = (len(placement), *(max(1, t // stride) for t in view.tile))
    merged = view.merge(torch.full(shape, 0.7), placement)
    assert merged.shape == size
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, torch.full(size, 0.7), rtol=0, atol=1e-6)


@given(size=SIZES, overlap=st.sampled_from([0, 8, 31]))
def test_split_and_merge_is_the_identity_at_camera_pitch(size, overlap):
    view = View.parse(f"tiled:32:{overlap}")
    image = ramp_image(size)
    tiles, placement = view.split(image)
    for channel in range(2):
        merged = view.merge(tiles[:, channel].float(), placement)
        np.testing.assert_allclose(merged.numpy(), image[..., channel], rtol=1e-5, atol=1e-4)


@given(size=st.tuples(st.integers(40, 90), st.integers(40, 90)), view=VIEWS, data=st.data())
def test_a_planted_peak_lands_where_it_was(size, view, data):
    view = View.parse(view)
    row, column = (data.draw(st.integers(0, n - 1)) for n in size)
    image = np.zeros((*size, 3), np.uint8)
    image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 255
    tiles, placement = view.split(image)
    merged = view.merge(tiles[:, 0].float(), placement).numpy()
    ys, xs = np.nonzero(merged > merged.max() * 0.7)
    scale = max(placement.native[0] / placement.grid[0], placement.native[1] / placement.grid[1], 1)
    assert abs(ys.mean() - row) <= scale + 0.6
    assert abs(xs.mean() - column) <= scale + 0.6


@given(size=SIZES, view=VIEWS)
def test_weights_are_a_partition_of_unity(size, view):
    placement = View.parse(view).place(size)
    for window, starts, tile, length in zip(
        placement.windows, (placement.rows, placement.columns), placement.tile, placement.grid, strict=True
    ):
        total = torch.zeros(max(length, tile))
        for weights, start in zip(window, starts, strict=True):
            assert (weights >= 0).all()
            total[start : start + tile] += weights
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_decisions_are_joined_by_or_and_stay_binary():
    placement = View.parse("tiled:32:8@0.5").place((100, 90))
    canvas = Canvas(placement, torch.device("cpu"))
    tile = torch.zeros((8, 8), dtype=torch.bool)
    tile[0, 0] = True
    canvas.add_decision(0, tile)
    canvas.add_decision(1, ~tile)
    result = canvas.result(nearest=True)
    assert set(result.unique().tolist()) == {0.0, 1.0}
    assert result[:8, :8].eq(1).all()
    assert result.shape == (100, 90)


def test_square_view_is_the_published_geometry():
    placement = View.parse("whole:1036:square").place((1000, 1500))
    assert placement.pad == (0, 0, 250, 250)
    placement = View.parse("whole:1036:square").place((7, 10))
    assert placement.pad == (0, 0, 1, 2)  # the odd pixel goes to the bottom
    for size in ((1000, 1500), (1500, 1000), (1024, 1024)):
        placement = View.parse("whole:1036:square").place(size)
        tokens = torch.zeros((1, 74, 74))
        tokens[0, 40, 30] = 1
        merged = View.parse("whole:1036:square").merge(tokens, placement).numpy()
        ys, xs = np.nonzero(merged > 0.9 * merged.max())
        side = max(size)
        assert abs(ys.mean() - (40.5 * side / 74 - placement.pad[2] - 0.5)) <= 1
        assert abs(xs.mean() - (30.5 * side / 74 - placement.pad[0] - 0.5)) <= 1


def test_small_images_are_padded_with_their_edge():
    image = np.full((3, 5, 3), 9, np.uint8)
    tiles, _ = View.parse("tiled:16:4").split(image)
    assert tiles.shape == (1, 3, 16, 16)
    assert tiles.eq(9).all()


def test_sixteen_bit_images_keep_their_levels():
    image = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) + 1000
    tiles, _ = View.parse("tiled:4:0").split(image)
    assert tiles.dtype == torch.float32
    assert len(tiles.unique()) == 48
    assert to_unit(torch.full((1,), 255, dtype=torch.uint8), torch.device("cpu")).item() == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whole",
        "tiled:32",
        "tiled:32:32",
        "tiled:32:8@0",
        "tiled:32:8@1.2.3",
        "whole:0",
        "whole:3x4:square",
        "whole:10 ",
    ],
)
def test_malformed_views_are_refused(text):
    with pytest.raises(HrbenchError, match="expected"):
        View.parse(text)


def test_views_joined_by_a_plus_are_fused():
    view = parse_view("whole:32+tiled:32:8+tiled:32:8@0.5")
    assert isinstance(view, FusedView)
    assert view.text == "whole:32+tiled:32:8+tiled:32:8@0.5"
    assert view.parts == tuple(View.parse(text) for text in view.text.split("+"))
    assert parse_view("whole:32") == View.parse("whole:32")
    assert parse_view("whole:32").parts == (View.parse("whole:32"),)
    with pytest.raises(HrbenchError, match="multiples of 14, 32 is not; use 28 or 42"):
        view.check_multiple(14, "l2bt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole:32+", r"fused view 'whole:32\+': view '': expected whole:SIZE"),
        ("whole:32+tiled:33", "view 'tiled:33': expected"),
        ("whole:32+tiled:32:32", "expected an overlap below the tile"),
        ("whole:32+tiled:32:8+whole:32", "there twice"),
        ("whole:24x32+tiled:32:8", "inputs of 24x32 and 32x32 pixels, expected one size"),
    ],
)
def test_views_that_cannot_be_fused_are_refused(text, message):
    with pytest.raises(HrbenchError, match=message):
        parse_view(text)


def test_multiples_name_the_nearest_sizes():
    View.parse("tiled:518:112").check_multiple(14, "l2bt")
    with pytest.raises(HrbenchError, match="multiples of 14, 512 is not; use 504 or 518"):
        View.parse("tiled:512:112").check_multiple(14, "l2bt")
