"""Gaussian: moments and distances against numpy, one Gaussian and one for every position, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import noise_normals

from hrbench import HrbenchError, create_method
from hrbench.engine.training import Fit, seeded
from hrbench.methods._patch_features import PatchFeatures, at_input_size
from hrbench.methods.gaussian import Gaussian, Moments
from hrbench.precision import autocast

SMALL = {"weights": "random", "backbone": "resnet10t", "strides": (4, 8)}


def fitted(images: int = 6, **options: object) -> tuple[Gaussian, torch.Tensor]:
    """Return a method fitted on noise, and its inputs."""
    normals = noise_normals(images)
    with seeded(0):
        method = create_method("gaussian", **SMALL, **options)
        method.fit(normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu")))
    assert isinstance(method, Gaussian)
    return method.eval(), torch.stack(list(normals))


def by_numpy(vectors: np.ndarray, shrinkage: float, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse regularised covariance of (N, C) vectors."""
    covariance = np.cov(vectors, rowvar=False)
    variance = np.trace(covariance) / len(covariance)
    return vectors.mean(0), np.linalg.inv(
        (1 - shrinkage) * covariance + (shrinkage * variance + ridge) * np.eye(len(covariance))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_all_batches_together(dtype: torch.dtype) -> None:
    vectors = 100 + torch.randn(2, 57, 5, generator=torch.Generator().manual_seed(0))
    moments = Moments(dtype)
    for part in vectors.split([1, 20, 3, 33], dim=1):
        moments.update(part)
    for position in range(2):
        given = vectors[position].double().numpy()
        np.testing.assert_allclose(moments.mean[position], given.mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            moments.covariance(slice(position, position + 1))[0], np.cov(given, rowvar=False), atol=1e-4
        )


@pytest.mark.parametrize("channels", [None, 7])
def test_the_map_is_the_mahalanobis_distance(channels: int | None) -> None:
    method, images = fitted(channels=channels, shrinkage=0.05)
    features = method.features(images)[:, method.chosen].permute(0, 2, 3, 1).double().numpy()
    mean, inverse = by_numpy(features.reshape(-1, features.shape[-1]), 0.05, 0)
    apart = features - mean
    expected = np.sqrt(np.einsum("bhwc,cd,bhwd->bhw", apart, inverse, apart))
    found = method.predict(images).maps["distance"]
    assert found.shape == (len(images), 16, 16)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_every_position_has_a_gaussian_of_its_own() -> None:
    method, images = fitted(images=12, per_position=True, input_size=64, channels=5, shrinkage=0, ridge=0.01)
    features = method.features(images)[:, method.chosen].double().numpy()
    found = method.predict(images).maps["distance"]
    for y, x in ((0, 0), (3, 15), (9, 4)):
        mean, inverse = by_numpy(features[:, :, y, x], 0, 0.01)
        apart = features[:, :, y, x] - mean
        np.testing.assert_allclose(found[:, y, x] ** 2, np.einsum("bc,cd,bd->b", apart, inverse, apart), rtol=2e-3)
    with pytest.raises(HrbenchError, match="expected images seen whole"):
        method.predict_inputs(images[:2], [4, 4])


def test_principal_directions_are_those_of_the_covariance() -> None:
    method, images = fitted(reduction="pca", channels=3, shrinkage=0)
    features = method.features(images).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    _, variances, directions = np.linalg.svd(features - features.mean(0), full_matrices=False)
    scores = (features - features.mean(0)) @ directions[:3].T / (variances[:3] / np.sqrt(len(features) - 1))
    expected = np.linalg.norm(scores, axis=1).reshape(len(images), 16, 16)
    np.testing.assert_allclose(method.predict(images).maps["distance"], expected, rtol=2e-3)


def test_batches_of_the_fit_do_not_matter() -> None:
    (one, images), (other, _) = fitted(batch_size=1), fitted(batch_size=4)
    maps = [method.predict(images).maps["distance"] for method in (one, other)]
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-4)


def test_a_blurred_map_is_at_the_inputs_size() -> None:
    method, images = fitted(blur=2.0)
    assert method.predict(images).maps["distance"].shape == (len(images), 64, 64)


def test_a_blurred_map_is_of_float32_in_a_run_in_bfloat16() -> None:
    maps = torch.rand((2, 16, 16), generator=torch.Generator().manual_seed(0))
    with autocast(torch.device("cpu"), "bfloat16"):
        found = at_input_size(maps, (64, 64), 4.0)
    assert torch.equal(found, at_input_size(maps, (64, 64), 4.0))


@pytest.mark.parametrize(("padding", "places"), [("replicate", 4), ("zeros", 9)])
def test_features_are_means_over_places_that_are_there_or_over_zeros_too(padding: str, places: int) -> None:
    shared = {"normalise": True, "join": "bilinear", "padding": padding}
    with seeded(0):
        features = PatchFeatures("resnet10t", "random", (4,), None, pool=3, **shared).eval()
    with seeded(0):
        raw = PatchFeatures("resnet10t", "random", (4,), None, pool=1, **shared).eval()(torch.ones(1, 3, 64, 64))
    pooled = features(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(pooled[0, :, 5, 5], raw[0, :, 4:7, 4:7].mean(dim=(1, 2)))
    torch.testing.assert_close(pooled[0, :, 0, 0], raw[0, :, :2, :2].sum(dim=(1, 2)) / places)


@pytest.mark.parametrize(("padding", "even"), [("zeros", False), ("replicate", True), ("reflect", True)])
def test_an_even_image_has_one_feature_unless_zeros_surround_it(padding: str, even: bool) -> None:
    features = PatchFeatures(
        "resnet10t", "random", (4, 8), None, pool=3, normalise=True, join="bilinear", padding=padding
    )
    found = features(torch.full((1, 3, 64, 64), 0.3))
    assert bool((found.amax(dim=(2, 3)) - found.amin(dim=(2, 3))).max() < 1e-5) == even


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels of gaussian is 0, expected 1 to"),
        ({"channels": 10_000}, "channels of gaussian is 10000, expected 1 to"),
        ({"shrinkage": 1.5}, r"shrinkage of gaussian is 1\.5"),
        ({"ridge": -1.0}, r"ridge of gaussian is -1\.0"),
        ({"blur": -1.0}, r"blur of gaussian is -1\.0"),
        ({"pool": 2}, "pool is 2, expected an odd number"),
        ({"per_position": True}, "input_size of gaussian is None, expected a multiple of"),
        ({"per_position": True, "input_size": 60, "reduction": "pca"}, "reduction of gaussian is 'pca'"),
        ({"batch_size": 0}, "batch_size of gaussian is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        create_method("gaussian", **SMALL, **options)


def test_features_that_do_not_vary_need_a_ridge() -> None:
    with pytest.raises(HrbenchError, match="do not vary in every direction"):
        fitted(images=2, per_position=True, input_size=64, shrinkage=0)
