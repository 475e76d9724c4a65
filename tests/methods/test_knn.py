"""k-NN: the sample, the choice of the bank, and the distances, each against a naive one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import noise_normals

from hrbench import HrbenchError, create_method
from hrbench._util.fake_cuda import DEVICE, fake_cuda
from hrbench.engine.training import Fit, seeded
from hrbench.methods import knn
from hrbench.methods.knn import KNN, Reservoir, covering, isolation, nearest

SMALL = {"weights": "random", "backbone": "resnet10t", "strides": (4, 8)}


def fitted(**options: object) -> tuple[KNN, torch.Tensor]:
    """Return a method fitted on noise, and its inputs."""
    normals = noise_normals(6)
    with seeded(0):
        method = create_method("knn", **SMALL, **options)
        method.fit(normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu")))
    assert isinstance(method, KNN)
    return method.eval(), torch.stack(list(normals))


def sampled(seed: int, size: int | None, parts: list[int]) -> list[int]:
    reservoir = Reservoir(size, torch.Generator().manual_seed(seed))
    for part in torch.arange(sum(parts)).float()[:, None].split(parts):
        reservoir.update(part)
    return [int(value) for value in reservoir.vectors[:, 0]]


def test_a_reservoir_is_a_fair_sample_without_replacement() -> None:
    counts = np.zeros(40, int)
    for seed in range(400):
        chosen = sampled(seed, 10, [3, 15, 1, 21])
        assert len(set(chosen)) == 10
        counts[chosen] += 1
    assert np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_a_reservoir_depends_on_the_seed_and_not_on_the_batches() -> None:
    assert sorted(sampled(1, 10, [40])) == sorted(sampled(1, 10, [3, 15, 1, 21])) != sorted(sampled(2, 10, [40]))
    assert sampled(1, None, [3, 4]) == sampled(1, 100, [3, 4]) == list(range(7))


def test_the_bank_is_the_greedy_choice() -> None:
    vectors = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    points, expected = vectors.double().numpy(), [7]
    while len(expected) < 12:
        apart = np.linalg.norm(points[:, None] - points[expected], axis=2).min(axis=1)
        expected.append(int(apart.argmax()))
    assert covering(vectors, 7, range(12)).tolist() == expected


def test_the_host_waits_for_no_choice_and_for_no_weight() -> None:
    vectors = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    method = create_method("knn", backbone="resnet10t", weights="random", reweight=3)
    maps = {"distance": torch.rand(4, 6), "weight": torch.rand(4, 6)}
    with fake_cuda() as log:
        there, maps_there = vectors.to(DEVICE), {name: item.to(DEVICE) for name, item in maps.items()}
        log.clear()
        chosen, final = covering(there, 7, range(12)), method.finish(maps_there)
        assert not log.waits
        assert chosen.tolist() == covering(vectors, 7, range(12)).tolist()
        assert final.tolist() == method.finish(maps).tolist()


def test_no_vector_is_chosen_twice_even_of_equal_ones() -> None:
    assert sorted(covering(torch.ones(6, 3), 2, range(6)).tolist()) == list(range(6))


@pytest.mark.parametrize("at_once", [1 << 25, 100])
def test_distances_are_those_to_the_nearest(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_DISTANCES", at_once)
    random = torch.Generator().manual_seed(0)
    vectors, bank = 50 + torch.randn(33, 6, generator=random), 50 + torch.randn(20, 6, generator=random)
    vectors[3] = bank[5] + 1e-4  # where a product of float32 numbers cancels
    expected = np.sort(np.linalg.norm(vectors.double().numpy()[:, None] - bank.double().numpy(), axis=2), axis=1)
    distances, places = nearest(vectors, bank, 3)
    np.testing.assert_allclose(distances, expected[:, :3], rtol=1e-4)
    np.testing.assert_allclose(torch.linalg.vector_norm(vectors[:, None] - bank[places], dim=2), distances, rtol=1e-4)
    assert nearest(vectors, bank, 99)[0].shape == (33, 20)


@pytest.mark.parametrize("at_once", [1 << 25, 100])
def test_an_isolated_vector_weighs_as_in_the_papers_equation(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_DISTANCES", at_once)
    random = torch.Generator().manual_seed(0)
    vectors, bank = (torch.randn(n, 6, generator=random) for n in (33, 20))
    _, places = nearest(vectors, bank, 1)
    expected = []
    for vector, place in zip(vectors.double().numpy(), places[:, 0].tolist(), strict=True):
        points = bank.double().numpy()
        around = np.linalg.norm(points - points[place], axis=1).argsort()[:4]
        shares = np.exp(np.linalg.norm(points[around] - vector, axis=1))
        expected.append(1 - shares[0] / shares.sum())
    np.testing.assert_allclose(isolation(vectors, bank, places[:, 0], 4), expected, rtol=1e-4)


def test_a_reweighted_map_is_the_map_times_the_weight_of_its_highest_place() -> None:
    options = {"candidates": 300, "bank": 40}
    (plain, images), (weighed, _) = fitted(**options), fitted(**options, reweight=3)
    maps = weighed.predict(images[:1]).maps
    raw = plain.predict(images[:1]).maps["distance"][0]
    scaled = weighed.finish({name: item[0] for name, item in maps.items()})
    torch.testing.assert_close(scaled, raw * maps["weight"].flatten()[raw.argmax()])
    assert 0 < scaled.max() < raw.max()


def test_what_is_in_the_bank_has_no_distance() -> None:
    method, images = fitted(candidates=None, bank=None, share=1.0)
    assert len(method.bank) == 6 * 16 * 16
    assert method.predict(images).maps["distance"].max() == 0
    changed = images.clone()
    changed[0, :, 20:28, 20:28] = 1
    found = method.predict(changed).maps["distance"]
    assert found[1:].max() == 0
    assert found[0, 5:7, 5:7].min() > 0


def test_the_bank_has_the_size_that_is_asked_for() -> None:
    method, images = fitted(candidates=300, bank=40, projected=8, neighbours=3)
    assert method.bank.shape == (40, method.features.width)
    assert method.predict(images).maps["distance"].shape == (6, 16, 16)
    assert fitted(candidates=300, bank=None, share=0.1)[0].bank.shape[0] == 30
    assert fitted(candidates=30, bank=40)[0].bank.shape[0] == 30
    assert fitted(blur=1.0, candidates=30, bank=4)[0].predict(images).maps["distance"].shape == (6, 64, 64)


@pytest.mark.parametrize(
    ("option", "value"),
    [("candidates", 0), ("bank", 0), ("share", 0.0), ("projected", -1), ("neighbours", 0), ("reweight", 1),
     ("blur", -1.0), ("batch_size", 0)],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(option: str, value: float) -> None:
    with pytest.raises(HrbenchError, match=f"{option} of knn is {value}, expected"):
        create_method("knn", **SMALL, **{option: value})
