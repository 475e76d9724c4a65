"""Kept features: those of the uncached fit, wherever they are kept, and the same bits after a kill."""

from __future__ import annotations

import errno
import logging
import os

import pytest
import torch
from torch import nn

from hrbench import HrbenchError, create_method, load_dataset
from hrbench._util.fake_cuda import fake_cuda
from hrbench.engine import feature_cache as features_module
from hrbench.engine.feature_cache import GROUP, Features
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, seeded
from hrbench.engine.views import View

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLACES = ["memory", "disk", "nowhere"]


@pytest.fixture
def normals(tree):
    category = load_dataset("folder", tree).categories[0]
    return ViewedNormals(category.train, View.parse("whole:32+tiled:32:8"))  # 56 inputs


class Extractor(nn.Module):
    """Two features of other shapes and types; counts the inputs that it saw."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=2).requires_grad_(False)
        self.seen = 0

    def forward(self, batch):
        self.seen += len(batch)
        return [self.convolution(batch), batch.mean(dim=(2, 3)).to(torch.bfloat16)]


@pytest.fixture
def extract():
    with seeded(0):
        return Extractor()


def keep_in(monkeypatch, place):
    monkeypatch.setattr(features_module, "MEMORY_BYTES", 1 << 30 if place == "memory" else 0)
    monkeypatch.setattr(features_module, "DISK_BYTES", 1 << 30 if place == "disk" else 0)
    monkeypatch.setattr(features_module, "FREE_BYTES", 0)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("start", [0, 9])
def test_batches_are_the_features_of_the_batches(normals, extract, tmp_path, monkeypatch, place, start):
    keep_in(monkeypatch, place)
    kept = Features(normals, extract, CPU, scratch=tmp_path)
    assert len(kept) == len(normals) == 56
    expected = [extract(batch) for batch in normals.batches(5, steps=25, seed=3, start=start)]
    found = list(kept.batches(5, steps=25, seed=3, start=start))
    assert len(found) == 25 - start
    for own, other in zip(found, expected, strict=True):
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize(("place", "most"), [("memory", 56), ("disk", 56), ("nowhere", 125 + GROUP)])
def test_an_input_is_extracted_once(normals, extract, tmp_path, monkeypatch, place, most):
    keep_in(monkeypatch, place)
    kept = Features(normals, extract, CPU, scratch=tmp_path)
    for _ in kept.batches(5, steps=25, seed=3):
        pass
    assert extract.seen == most  # without room, the first group told how large features are
    for _ in kept.batches(5, steps=25, seed=4):
        pass
    assert extract.seen == (most if place != "nowhere" else most + 125)


def test_nothing_is_kept_for_a_single_epoch(normals, extract, monkeypatch):
    keep_in(monkeypatch, "memory")
    kept = Features(normals, extract, CPU)
    for seen in (56, 112):
        for _ in kept.batches(8, steps=7, seed=0):
            pass
        assert extract.seen == seen


def test_features_do_not_depend_on_what_was_drawn_before(normals, extract, monkeypatch):
    keep_in(monkeypatch, "memory")
    whole = list(Features(normals, extract, CPU).batches(5, steps=25, seed=3))
    again = list(Features(normals, extract, CPU).batches(5, steps=25, seed=3, start=13))
    for own, other in zip(again, whole[13:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_a_full_disk_is_no_error(normals, extract, tmp_path, monkeypatch):
    keep_in(monkeypatch, "disk")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    kept = Features(normals, extract, CPU, scratch=tmp_path)
    assert len(list(kept.batches(5, steps=25, seed=3))) == 25
    assert extract.seen >= 125
    assert list(tmp_path.iterdir()) == []


def test_parts_that_learn_and_shapes_that_change_are_refused(normals, extract, monkeypatch):
    keep_in(monkeypatch, "memory")
    learns = Extractor()
    learns.convolution.requires_grad_(True)
    with pytest.raises(HrbenchError, match="parts that learn cannot be kept"):
        next(Features(normals, learns, CPU).batches(5, steps=25, seed=3))
    sizes = iter([4, 4, 4, 5])

    def changing(batch):
        return [batch[:, :, : next(sizes)]]

    with pytest.raises(HrbenchError, match=r"have the shape \(3, 5, 32\), expected \(3, 4, 32\)"):
        list(Features(normals, changing, CPU).batches(5, steps=25, seed=3))


@pytest.fixture
def gpu():
    with fake_cuda() as log:
        yield log


def test_on_a_gpu_features_stay_there_and_no_batch_waits(normals, extract, gpu):
    expected = [extract(batch) for batch in normals.batches(5, steps=25, seed=3)]
    kept = Features(normals, extract.to(GPU), GPU)
    gpu.clear()
    found = list(kept.batches(5, steps=25, seed=3))
    assert not gpu.waits
    assert all(store.is_cuda for store in kept._stores)
    for own, other in zip(found, expected, strict=True):
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("free", "there"), [(2.0, True), (1.99, False)])
def test_on_a_gpu_features_take_half_of_what_is_free(normals, extract, gpu, monkeypatch, free, there):
    needed = 56 * (4 * 15 * 15 * 4 + 3 * 2)  # float32 and bfloat16
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * needed), 1 << 40))
    kept = Features(normals, extract.to(GPU), GPU)
    for _ in range(2):
        gpu.clear()
        batches = list(kept.batches(5, steps=25, seed=3))
    assert [store.is_cuda for store in kept._stores] == [there, there]
    assert all(x.is_cuda for batch in batches for x in batch)
    assert not gpu.waits  # of batches that are known; elsewhere features wait on their way to the host


@pytest.mark.parametrize("place", PLACES)
def test_features_leave_a_gpu_whose_memory_the_fit_needs(normals, extract, tmp_path, monkeypatch, gpu, place):
    keep_in(monkeypatch, place)
    whole = list(Features(normals, extract.to(GPU), GPU).batches(5, steps=25, seed=3))
    kept = Features(normals, extract, GPU, scratch=tmp_path)
    assert not kept.leave_device()
    batches = kept.batches(5, steps=25, seed=3)
    found = [next(batches) for _ in range(7)]
    assert kept.leave_device()
    assert not kept.leave_device()
    found += batches
    assert kept._stores is None if place == "nowhere" else not any(store.is_cuda for store in kept._stores)
    for own, other in zip(found, whole, strict=True):
        for a, b in zip(own, other, strict=True):
            torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0 if place != "nowhere" else 1e-5, atol=1e-6)


def test_a_step_for_which_a_gpu_has_no_memory_is_done_again_without_kept_features(few, gpu, caplog):
    def fitted(short_at=None):
        with seeded(0):
            method, calls = create_method("fastflow", **FLOW).to(GPU), 0
            loss = method.loss

            def short(features):
                nonlocal calls
                calls += 1
                if calls == short_at:
                    raise torch.cuda.OutOfMemoryError
                return loss(features)

            method.loss = short
            context = Fit(method, held_out=None, seed=0, device=GPU)
            method.train().fit(few, context)
        return learnt_state(method)

    with caplog.at_level(logging.INFO, "hrbench"):
        whole, short = fitted(), fitted(short_at=9)
    assert all(torch.equal(short[key], value) for key, value in whole.items())
    assert "kept features have left cuda" in caplog.text


def test_a_fit_without_kept_features_says_that_memory_is_short(few, gpu):
    method = create_method("fastflow", **FLOW).to(GPU)

    def short(features):
        raise torch.cuda.OutOfMemoryError

    context = Fit(method, held_out=None, seed=0, device=GPU)
    optimizer = torch.optim.Adam(method.flows.parameters())
    with pytest.raises(torch.cuda.OutOfMemoryError):
        context.train(few, short, optimizer, steps=3, batch_size=2)


FLOW = {
    "backbone": "test_resnet",
    "weights": "random",
    "strides": (4, 8),
    "flow_steps": 2,
    "batch_size": 4,
    "steps": 16,
}
METHODS = {
    "l2bt": {"teacher": "test_vit", "weights": "random", "blocks": (1, 3), "steps": 16},
    "fastflow": FLOW,
    "uflow": FLOW,
}


def fitted(name, normals, tmp_path, *, stop=None):
    """Fit; with `stop`, end like a killed process at that step, and continue."""
    tmp_path.mkdir(exist_ok=True)

    class Killed(BaseException):
        pass

    def fit():
        with seeded(0):
            method = create_method(name, **METHODS[name])
            context = Fit(
                method, held_out=normals, seed=0, device=CPU, checkpoint=tmp_path / "fit.pt", scratch=tmp_path
            )
            method.train()
            method.fit(normals, context)
        return method, torch.load(tmp_path / "fit-0.pt", weights_only=True)["losses"]

    if stop is not None:
        steps = iter(range(stop))
        with pytest.MonkeyPatch.context() as patch:
            real = torch.optim.Adam.step

            def step(self, *args):
                if next(steps, None) is None:
                    raise Killed
                return real(self, *args)

            patch.setattr(torch.optim.Adam, "step", step)
            with pytest.raises(Killed):
                fit()
    return fit()


@pytest.fixture
def few(tree):
    category = load_dataset("folder", tree).categories[0]
    return ViewedNormals(category.train[:5], View.parse("tiled:32:8"))  # 30 inputs


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_on_kept_features_is_the_fit(name, few, tmp_path, monkeypatch):
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", -1.0)
    losses, states = {}, {}
    for place in PLACES:
        keep_in(monkeypatch, place)
        method, losses[place] = fitted(name, few, tmp_path / place)
        states[place] = learnt_state(method)
    keep_in(monkeypatch, "memory")
    method, losses["resumed"] = fitted(name, few, tmp_path / "resumed", stop=11)
    states["resumed"] = learnt_state(method)
    assert losses["memory"] == pytest.approx(losses["nowhere"], rel=1e-4)
    for place in ("disk", "resumed"):
        assert losses[place] == losses["memory"]
        assert all(torch.equal(states[place][key], value) for key, value in states["memory"].items())
