"""Views: coverage, seams, geometry, for any size (property-based)."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrbench import HrbenchError
from hrbench.engine.fusion import Fusion
from hrbench.engine.views import DecisionCanvas, Look, View, tile_starts, to_unit

TILED = ["tiled:32:8", "tiled:32:0", "tiled:16:15", "tiled:32:8@0.5", "tiled:32:24@0.7"]
PLAIN = ["whole:32", "whole:24x40", "whole:32:square", "whole:32:square:bilinear", *TILED]
PYRAMIDS = [
    "whole:32+tiled:32:8",
    "tiled:32:8+tiled:32:8@0.5+tiled:32:8@0.25",
    "whole:32:square+tiled:32:24@0.7",
    "whole:32:bilinear+tiled:32:8@0.5:bilinear+whole:32",
]
EVERY = st.sampled_from([*PLAIN, *PYRAMIDS])
VIEWS = st.sampled_from(PLAIN)
# Any size, and those that leave a remainder of one pixel at tiles of 32 with a step of 24, or lack one.
LENGTHS = st.one_of(st.integers(1, 90), st.sampled_from([1, 31, 32, 33, 55, 56, 57, 65, 81]))
SIZES = st.tuples(LENGTHS, LENGTHS)


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


@given(size=SIZES, view=EVERY, stride=st.sampled_from([1, 4, 7]))
def test_constant_tiles_merge_to_the_constant(size, view, stride):
    merged = []
    for look in View.parse(view).looks:
        placement = look.place(size)
        shape = (len(placement), *(max(1, t // stride) for t in look.tile))
        merged.append(look.merge(torch.full(shape, 0.7), placement))
        assert merged[-1].shape == size
        assert merged[-1].dtype == torch.float32
        torch.testing.assert_close(merged[-1], torch.full(size, 0.7), rtol=0, atol=1e-6)
    fused = Fusion(("",) * len(merged), (0.1,) * len(merged), (0.3,) * len(merged))(merged)
    torch.testing.assert_close(fused, torch.full(size, math.log1p(math.exp(2))), rtol=0, atol=1e-5)


@given(size=SIZES, view=EVERY, data=st.data())
def test_every_pixel_is_seen(size, view, data):
    image = np.full((*size, 3), 60, np.uint8)
    other = image.copy()
    other[data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))] = 255
    for look in View.parse(view).looks:
        before, _ = look.split(image)
        after, _ = look.split(other)
        assert not torch.equal(before, after)


@given(size=SIZES, overlap=st.sampled_from([0, 8, 31]))
def test_split_and_merge_is_the_identity_at_camera_pitch(size, overlap):
    look = Look.parse(f"tiled:32:{overlap}")
    image = ramp_image(size)
    tiles, placement = look.split(image)
    for channel in range(2):
        merged = look.merge(tiles[:, channel].float(), placement)
        np.testing.assert_allclose(merged.numpy(), image[..., channel], rtol=1e-5, atol=1e-4)


def centroid(map_):
    """Return where the upper half of a map's peak lies."""
    weights = np.clip(map_ - map_.max() / 2, 0, None).astype(np.float64)
    rows, columns = np.indices(map_.shape)
    return np.array([(weights * rows).sum(), (weights * columns).sum()]) / weights.sum()


@given(size=SIZES, view=EVERY, stride=st.sampled_from([1, 4]), data=st.data())
def test_a_planted_peak_lands_within_one_pixel(size, view, stride, data):
    for look in View.parse(view).looks:
        placement = look.place(size)
        pixel = max(n / g for n, g in zip(size, placement.grid, strict=True)) * stride  # one of the map, in native ones
        width = max(1.5, 1.5 * pixel)
        row, column = (data.draw(st.integers(0, n - 1)) for n in size)
        rows, columns = np.indices(size)
        peak = 250 * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2 / width**2)
        tiles, _ = look.split(np.repeat(peak.round().astype(np.uint8)[..., None], 3, axis=2))
        maps = torch.nn.functional.avg_pool2d(tiles[:, 0].float(), stride)
        merged = look.merge(maps, placement).numpy()
        distance = np.linalg.norm(centroid(merged) - centroid(peak))
        assert distance <= max(1.0, 0.15 * pixel), (look.text, size, row, column, distance, pixel)


@given(size=SIZES, view=VIEWS)
def test_weights_are_a_partition_of_unity(size, view):
    placement = Look.parse(view).place(size)
    for window, starts, tile, length in zip(
        placement.windows, (placement.rows, placement.columns), placement.tile, placement.grid, strict=True
    ):
        total = torch.zeros(max(length, tile))
        for weights, start in zip(window, starts, strict=True):
            assert (weights >= 0).all()
            total[start : start + tile] += weights
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_decisions_are_joined_by_or():
    placement = Look.parse("tiled:32:8@0.5").place((100, 90))
    canvas = DecisionCanvas(placement, torch.device("cpu"))
    tile = torch.zeros((8, 8), dtype=torch.bool)
    tile[0, 0] = True
    canvas.add(0, tile)
    canvas.add(1, ~tile)
    result = canvas.result()
    assert result.dtype == torch.bool
    assert result.any()
    assert not result.all()
    assert result[:8, :8].eq(1).all()
    assert result.shape == (100, 90)


def test_what_a_tile_decides_where_it_has_no_part_does_not_count():
    _, placement = Look("tiled", (16, 16), 8).split(np.zeros((16, 24, 3), np.uint8))
    assert placement.columns == (0, 8)
    canvas = DecisionCanvas(placement, torch.device("cpu"))
    canvas.add(0, torch.ones(16, 16, dtype=torch.bool))
    canvas.add(1, torch.zeros(16, 16, dtype=torch.bool))
    assert canvas.result().tolist() == [[1] * 14 + [0] * 10] * 16  # the last two are left to the neighbour


def test_square_view_is_the_published_geometry():
    placement = Look.parse("whole:1036:square").place((1000, 1500))
    assert placement.pad == (0, 0, 250, 250)
    placement = Look.parse("whole:1036:square").place((7, 10))
    assert placement.pad == (0, 0, 1, 2)  # the odd pixel goes to the bottom
    for size in ((1000, 1500), (1500, 1000), (1024, 1024)):
        placement = Look.parse("whole:1036:square").place(size)
        tokens = torch.zeros((1, 74, 74))
        tokens[0, 40, 30] = 1
        merged = Look.parse("whole:1036:square").merge(tokens, placement).numpy()
        ys, xs = np.nonzero(merged > 0.9 * merged.max())
        side = max(size)
        assert abs(ys.mean() - (40.5 * side / 74 - placement.pad[2] - 0.5)) <= 1
        assert abs(xs.mean() - (30.5 * side / 74 - placement.pad[0] - 0.5)) <= 1


def test_small_images_are_padded_with_their_edge():
    image = np.full((3, 5, 3), 9, np.uint8)
    tiles, _ = Look.parse("tiled:16:4").split(image)
    assert tiles.shape == (1, 3, 16, 16)
    assert tiles.eq(9).all()


def picture(size, dtype=np.uint8):
    """An image with what photographs have: soft shading, edges and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(size)[..., None]
    phase = np.arange(3)
    soft = 0.5 + 0.25 * np.sin(columns / 17 + phase) * np.cos(rows / 23)
    edges = 0.15 * ((rows // 19 + columns // 31) % 2)
    unit = (soft + edges + rng.normal(0, 0.05, (*size, 3))).clip(0, 1)
    return (unit * np.iinfo(dtype).max).round().astype(dtype)


@pytest.mark.parametrize("size", [(300, 210), (210, 300), (40, 50)])
def test_an_antialiased_filter_is_pillow_s_within_a_grey_level(size):
    image = picture(size)
    for name, theirs in (("", Image.Resampling.BICUBIC), (":bilinear", Image.Resampling.BILINEAR)):
        tiles, _ = Look.parse(f"whole:64x96{name}").split(image)
        expected = np.asarray(Image.fromarray(image).resize((96, 64), theirs), np.int16)
        assert np.abs(tiles[0].permute(1, 2, 0).numpy() - expected).max() <= 1, name


def test_an_aliased_filter_reads_the_four_nearest_pixels():
    image = picture((300, 210))
    tiles, placement = Look.parse("tiled:64:0@0.25:bilinear-aliased").split(image)
    rows, columns = (4 * np.arange(64) + 1.5, (np.arange(52) + 0.5) * 210 / 52 - 0.5)
    (top, left), (below, right) = (np.floor(x).astype(int) for x in (rows, columns)), (rows % 1, columns % 1)
    below, right, image = below[:, None, None], right[None, :, None], image.astype(float)
    expected = (1 - below) * ((1 - right) * image[top][:, left] + right * image[top][:, left + 1])
    expected += below * ((1 - right) * image[top + 1][:, left] + right * image[top + 1][:, left + 1])
    assert placement.grid == (75, 52)
    assert np.abs(tiles[0, :, :, :52].permute(1, 2, 0).numpy() - expected).max() <= 1


def test_filters_differ_and_only_where_an_image_is_resized():
    image = picture((64, 64))
    for other in ("bilinear", "bilinear-aliased"):
        assert not torch.equal(Look.parse(f"whole:32:{other}").split(image)[0], Look.parse("whole:32").split(image)[0])
        assert torch.equal(Look.parse(f"whole:64:{other}").split(image)[0], Look.parse("whole:64").split(image)[0])


@pytest.mark.parametrize("name", ["", ":bilinear", ":bilinear-aliased"])
def test_sixteen_bit_images_are_resized_by_the_same_filter(name):
    look = Look.parse(f"whole:48{name}")
    deep, _ = look.split(picture((120, 90), np.uint16))
    flat, _ = look.split(picture((120, 90)))
    assert deep.dtype == torch.float32
    torch.testing.assert_close(deep, to_unit(flat, torch.device("cpu")), rtol=0, atol=1.5 / 255)


def test_a_look_knows_its_filter():
    assert [Look.parse(text) for text in ("whole:24x32:bilinear", "whole:32:square:bilinear-aliased")] == [
        Look("whole:24x32:bilinear", (24, 32), filter="bilinear"),
        Look("whole:32:square:bilinear-aliased", (32, 32), square=True, filter="bilinear-aliased"),
    ]
    assert Look.parse("tiled:32:8@0.5:bilinear") == Look("tiled:32:8@0.5:bilinear", (32, 32), 8, 0.5, filter="bilinear")
    assert {look.filter for look in View.parse("whole:32+tiled:32:8@0.5+tiled:32:8").looks} == {"bicubic"}
    assert [look.filter for look in View.parse("whole:32:bilinear+whole:32").looks] == ["bilinear", "bicubic"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole:32:lanczos", "filter 'lanczos', expected bilinear or bilinear-aliased, or none for bicubic"),
        ("whole:32:bicubic", "view 'whole:32:bicubic': bicubic is the filter where none is named, expected none"),
        ("tiled:32:8:bilinear", "nothing is resized at camera pitch, expected no filter"),
        ("tiled:32:8@1.0:bilinear", "nothing is resized at camera pitch, expected no filter"),
        ("whole:32:bilinear:square", "expected whole:SIZE.*with :FILTER after any that resizes"),
        (
            "whole:32+whole:32:linear",
            r"fused view 'whole:32\+whole:32:linear': view 'whole:32:linear': filter 'linear'",
        ),
    ],
)
def test_filters_that_cannot_be_are_refused(text, message):
    with pytest.raises(HrbenchError, match=message):
        View.parse(text)


@pytest.mark.parametrize("text", ["tiled:8:0@0.01", "whole:1", "whole:1:bilinear", "whole:1:bilinear-aliased"])
def test_an_image_may_shrink_to_a_single_pixel(text):
    look = Look.parse(text)
    for dtype, value in ((np.uint8, 9), (np.uint16, 9 * 257)):
        tiles, placement = look.split(np.full((3, 5, 3), value, dtype))
        torch.testing.assert_close(to_unit(tiles, torch.device("cpu")).unique(), torch.tensor([9 / 255]))
        assert look.merge(tiles[:, 0].float(), placement).shape == (3, 5)


def test_sixteen_bit_images_keep_their_levels():
    image = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) + 1000
    tiles, _ = Look.parse("tiled:4:0").split(image)
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


def test_a_view_is_a_tuple_of_looks():
    view = View.parse("whole:32+tiled:32:8+tiled:32:8@0.5")
    assert view.text == "whole:32+tiled:32:8+tiled:32:8@0.5"
    assert view.looks == tuple(Look.parse(text) for text in view.text.split("+"))
    assert view.tile == (32, 32)
    assert View.parse("whole:32") == View("whole:32", (Look.parse("whole:32"),))
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
        View.parse(text)


def test_multiples_name_the_nearest_sizes():
    View.parse("tiled:518:112").check_multiple(14, "l2bt")
    with pytest.raises(HrbenchError, match="multiples of 14, 512 is not; use 504 or 518"):
        View.parse("tiled:512:112").check_multiple(14, "l2bt")
