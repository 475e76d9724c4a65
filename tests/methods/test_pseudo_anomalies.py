"""Pseudo-anomalies: labels mark what changed and nothing else; sizes, shapes and determinism of the generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import functional as torchvision

from hrbench._util.resources import methods_package
from hrbench.errors import HrbenchError
from hrbench.precision import autocast

methods_package()
from hrbench.methods._defect_shapes import blob, perlin_noise, simple_shape  # noqa: E402
from hrbench.methods._image_operations import blurred, colour_jittered, grey, hue_turned, recoloured, rotated  # noqa: E402
from hrbench.methods._pseudo_anomalies import (  # noqa: E402
    _PUBLISHED_PATCH,
    GENERATORS,
    VISIBLE,
    _rounded_up,
    corrupt,
)
from hrbench.methods._textures import texture  # noqa: E402


def surface(n: int = 4, size: tuple[int, int] = (64, 96)) -> Tensor:
    """Return images with texture in the upper half, flat below: a flip or blur changes nothing visible there."""
    images = torch.full((n, 3, *size), 0.5)
    noise = torch.rand((n, 3, size[0] // 2, size[1]), generator=torch.Generator().manual_seed(1))
    images[:, :, : size[0] // 2] += 0.4 * (noise - 0.5)
    return images


def components(label: Tensor) -> list[int]:
    found, _ = ndimage.label(label.numpy(), np.ones((3, 3)))
    return np.bincount(found.ravel())[1:].tolist()


@given(st.sampled_from(GENERATORS), st.integers(0, 2**32), st.sampled_from([(64, 96), (33, 47), (16, 16)]))
def test_labels_mark_what_changed(generator: str, seed: int, size: tuple[int, int]) -> None:
    clean = surface(2, size)
    found = corrupt(clean, np.random.default_rng(seed), generator=generator, probability=1.0)
    assert found.images.shape == clean.shape
    assert found.images.dtype == torch.float32
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.labels.shape == (2, *size)
    assert found.labels.dtype == torch.bool
    change = (found.images - clean).abs().amax(dim=1)
    assert (change[~found.labels] == 0).all()
    visible = (change > VISIBLE).numpy()
    for label, amount, seen in zip(found.labels.numpy(), change, visible, strict=True):
        assert (label >= seen).all()
        # Pixels that stayed by chance are filled in from at most two pixels away.
        assert (label <= ndimage.binary_dilation(seen, np.ones((5, 5)))).all()
        assert label.any() == bool((amount > 0).any())


@pytest.mark.parametrize("generator", GENERATORS)
def test_equal_generators_give_equal_bits(generator: str) -> None:
    first, again, other = (
        corrupt(surface(), np.random.default_rng(seed), generator=generator, probability=1.0) for seed in (5, 5, 6)
    )
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_run_in_bfloat16_draws_the_same_bits(generator: str) -> None:
    expected = corrupt(surface(), np.random.default_rng(5), generator=generator, probability=1.0)
    with autocast(torch.device("cpu"), "bfloat16"):
        found = corrupt(surface(), np.random.default_rng(5), generator=generator, probability=1.0)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


def test_the_clean_batch_and_the_global_generators_are_left_alone() -> None:
    clean = surface()
    before, state = clean.clone(), torch.get_rng_state()
    for generator in GENERATORS:
        corrupt(clean, np.random.default_rng(0), generator=generator, probability=1.0)
    assert torch.equal(clean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_probability_is_that_of_a_defect() -> None:
    clean, rng = surface(200, (32, 32)), np.random.default_rng(0)
    share = corrupt(clean, rng, generator="tiny").labels.flatten(1).any(dim=1).float().mean()
    assert 0.55 < share < 0.78  # 2/3 +- 3.4 sigma
    assert torch.equal(corrupt(clean, rng, probability=0.0).images, clean)


def test_flipping_a_flat_surface_is_no_defect() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5)
    silent, labelled = 0, 0
    for seed in range(40):
        found = corrupt(flat, np.random.default_rng(seed), generator="polygon", probability=1.0)
        silent += int(not found.labels.any())
        labelled += int(found.labels.any())
    assert silent > 5  # flips, blur and grey change nothing
    assert labelled > 5  # jitter and noise do


@pytest.mark.parametrize("generator", GENERATORS)
def test_defects_stay_within(generator: str) -> None:
    clean = surface()
    within = torch.zeros(4, 64, 96, dtype=torch.bool)
    within[:, 10:40, 20:60] = True
    labels = torch.stack(
        [
            corrupt(clean, np.random.default_rng(seed), generator=generator, probability=1.0, within=within).labels
            for seed in range(4)
        ]
    )
    assert labels.any()
    assert not (labels & ~within).any()


def test_tiny_is_tiny_and_sized_covers_all_sizes() -> None:
    clean = surface(24, (256, 256))
    areas = {}
    for generator in ("tiny", "sized", "polygon"):
        found = corrupt(clean, np.random.default_rng(0), generator=generator, probability=1.0)
        areas[generator] = np.array([a for label in found.labels for a in components(label)])
    assert np.median(areas["tiny"]) < 200
    # Blobs touch now and then, hence a margin over the largest disc.
    assert np.quantile(areas["tiny"], 0.95) < 1.5 * np.pi / 4 * 32**2
    # Log-uniform area: every third of the log scale from 3 px to 256 / 3 px holds its share.
    thirds = np.histogram(np.log(areas["sized"]), np.log(np.pi / 4 * np.geomspace(3, 256 / 3, 4) ** 2))[0]
    assert (thirds / len(areas["sized"]) > 0.2).all()
    assert areas["polygon"].max() > 10 * areas["tiny"].max()


def test_blobs_have_the_area_that_was_drawn() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        top, left, cover = blob((400, 400), 30.0, rng)
        if min(top, left) > 0 and top + cover.shape[0] < 400 and left + cover.shape[1] < 400:
            ratios.append(float(cover.sum()) / (np.pi / 4 * 30**2))
    assert 0.97 < np.mean(ratios) < 1.06
    assert np.std(ratios) < 0.1


def test_perlin_masks_have_the_published_statistics() -> None:
    """Measured on 1500 masks of the published recipe at 256 px: 5.3 % empty, mean share 4.8 %."""
    # Opaque on a surface that no texture matches, so that the label is the mask.
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        cells = (int(2 ** rng.integers(6)), int(2 ** rng.integers(6)))
        noise = perlin_noise((256, 256), cells, rng)
        shares.append(float((rotated(noise[None], rng.uniform(-90, 90)) > 0.5).float().mean()))
    assert abs(np.mean(shares) - 0.048) < 0.006
    assert abs(np.mean(np.array(shares) == 0) - 0.053) < 0.04


@given(st.integers(16, 70), st.integers(16, 70), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=20)
def test_perlin_noise_is_zero_at_lattice_corners(height: int, width: int, rows: int, columns: int) -> None:
    noise = perlin_noise((height, width), (rows, columns), np.random.default_rng(0))
    assert noise.shape == (height, width)
    assert noise.abs().max() <= 1.0001
    for y in range(rows):
        for x in range(columns):
            if (y * height) % rows == 0 and (x * width) % columns == 0:
                assert abs(noise[y * height // rows, x * width // columns]) < 1e-4


def test_polygons_are_filled_by_the_even_odd_rule() -> None:
    from matplotlib.path import Path

    class Corners:
        """Stands in for a generator: a fixed pentagram."""

        corners = np.array([[5.1, 50.2], [90.3, 20.1], [35.2, 95.3], [35.7, 5.3], [90.1, 80.2]])

        def integers(self, *_: int) -> int:
            return 2

        def uniform(self, *_: object) -> np.ndarray:
            return self.corners

    found = simple_shape((100, 100), Corners())
    centres = np.stack(np.mgrid[:100, :100], axis=-1).reshape(-1, 2) + 0.5
    expected = Path(Corners.corners).contains_points(centres).reshape(100, 100)  # counts crossings of a ray
    assert np.array_equal(found.numpy(), expected)
    assert not found[50, 50]  # enclosed twice


def test_textures_are_images() -> None:
    sources = surface()
    rng = np.random.default_rng(0)
    stds = []
    for _ in range(60):
        found = texture(sources, (48, 40), rng)
        assert found.shape == (3, 48, 40)
        assert found.min() >= 0
        assert found.max() <= 1
        stds.append(float(found.std()))
    assert np.median(stds) > 0.05


def test_hue_keeps_brightness_and_grey() -> None:
    image = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(0))
    turned = recoloured(image, 0.3, 1.2)
    torch.testing.assert_close(grey(turned), grey(image), atol=1e-3, rtol=0)
    assert (turned - image).abs().max() > 0.1
    torch.testing.assert_close(recoloured(image, 1.0, 1.0), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(recoloured(image, 0.4, 0.0), grey(image), atol=2e-3, rtol=0)


@pytest.mark.parametrize("turns", [-0.4, 0.0, 0.1, 0.37])
def test_hue_turns_as_torchvisions(turns: float) -> None:
    image = torch.rand((3, 9, 8), generator=torch.Generator().manual_seed(0))
    image[:, 0] = image[:1, 0]  # grey
    image[:, 1] = torch.eye(3)[:, torch.arange(8) % 3]
    image[:, 2] = 1 - image[:, 1]
    torch.testing.assert_close(hue_turned(image, turns), torchvision.adjust_hue(image, turns), atol=1e-5, rtol=0)


def test_published_jitter_is_torchvisions_in_random_order() -> None:
    image = torch.rand((3, 9, 8), generator=torch.Generator().manual_seed(0))
    changes = ("brightness", "contrast", "saturation", "hue")
    orders = set()
    for seed in range(12):
        found = colour_jittered(image, 0.8, 0.4, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        amounts = [*rng.uniform(0.2, 1.8, 3), rng.uniform(-0.4, 0.4)]
        order, expected = rng.permutation(4), image
        for k in order:
            expected = getattr(torchvision, f"adjust_{changes[k]}")(expected, float(amounts[k]))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)  # its greys have weights of four digits
        orders.add(tuple(order))
    assert len(orders) > 6


@pytest.mark.parametrize("change", ["grey", "flip"])
def test_published_patches_are_grey_or_flipped_half_the_time(change: str) -> None:
    image, rng = torch.rand((3, 9, 8), generator=torch.Generator().manual_seed(0)), np.random.default_rng(0)
    unchanged = [torch.equal(_PUBLISHED_PATCH[change](image, rng), image) for _ in range(400)]
    assert 0.42 < np.mean(unchanged) < 0.58


def test_published_shapes_are_of_one_size_relative_to_the_image() -> None:
    shapes = [
        [simple_shape((n, n), np.random.default_rng(seed), unit=n / 1000).float().mean() for seed in range(100)]
        for n in (112, 448)
    ]
    np.testing.assert_allclose(*shapes, atol=0.02)
    # Without a unit the margin keeps corners away from more than a fifth of a small image.
    small = [simple_shape((112, 112), np.random.default_rng(seed)).float().mean() for seed in range(100)]
    assert np.abs(np.subtract(small, shapes[1])).max() > 0.05


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    image = torch.rand((3, 30, 41), generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(image.numpy().astype(float), (0, sigma, sigma), truncate=8)
    found = blurred(image, sigma).numpy()
    inner = (..., slice(8, -8), slice(8, -8))  # borders differ: weights that are left count
    assert np.abs(found - expected)[inner].max() < 1e-5
    assert np.abs(blurred(torch.ones(3, 30, 41), 17.0).numpy() - 1).max() < 1e-5


def test_mistakes_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(HrbenchError, match=r"unknown pseudo-anomaly generator 'perlim'.*did you mean 'perlin'"):
        corrupt(surface(), rng, generator="perlim")
    with pytest.raises(HrbenchError, match=r"probability of pseudo-anomalies is 1\.5, expected 0 to 1"):
        corrupt(surface(), rng, probability=1.5)
    with pytest.raises(HrbenchError, match=r"images are \(4, 3, 8, 8\), expected"):
        corrupt(surface(4, (8, 8)), rng)


@pytest.mark.parametrize("value", [0.1, 0.5, 1 / 3, 0.7, np.nextafter(0.5, 1)])
def test_a_float32_is_below_a_number_where_it_is_below_its_next_float32(value: float) -> None:
    limit = _rounded_up(value)
    assert float(np.float32(limit)) == limit >= value
    for x in (np.nextafter(np.float32(value), np.float32(side)) for side in (0, 1)):
        assert (x < np.float32(limit)) == (float(x) < value)
    assert (np.float32(value) < np.float32(limit)) == (float(np.float32(value)) < value)
