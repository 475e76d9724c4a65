"""The stream of training inputs and the fit loop."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hrbench import HrbenchError, create_method, load_dataset
from hrbench.engine.training import Fit, ViewedNormals, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import View
from hrbench.imaging import read_image
from hrbench.testing import StackedNormals


@pytest.fixture
def normals(tree):
    category = load_dataset("folder", tree).categories[0]
    return ViewedNormals(category.train, View.parse("tiled:32:8"))


def fingerprint(tensor):
    return float(tensor.double().sum())


def test_an_epoch_holds_every_tile_once(normals):
    every = Counter(fingerprint(x) for x in normals)
    assert len(normals) == sum(every.values()) == 8 * 2 * 3
    epoch = torch.cat(list(normals.batches(8, steps=6, seed=3)))
    assert Counter(fingerprint(x) for x in epoch) == every
    assert epoch.dtype == torch.float32
    assert 0 <= float(epoch.min()) <= float(epoch.max()) <= 1


def test_fused_views_give_the_inputs_of_all(normals):
    views = [ViewedNormals(normals.samples, View.parse(text)) for text in ("whole:32", "tiled:32:8")]
    fused = ViewedNormals(normals.samples, View.parse("whole:32+tiled:32:8"))
    every = Counter(fingerprint(x) for x in fused)
    assert len(fused) == 8 + 8 * 2 * 3
    assert every == sum((Counter(fingerprint(x) for x in view) for view in views), Counter())
    assert Counter(fingerprint(x) for x in torch.cat(list(fused.batches(8, steps=7, seed=1)))) == every


def test_the_stream_depends_on_the_seed_and_can_start_anywhere(normals):
    whole = list(normals.batches(4, steps=15, seed=5))
    later = list(normals.batches(4, steps=15, seed=5, start=9))
    assert len(later) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[9:], later, strict=True))
    other = next(normals.batches(4, steps=1, seed=6))
    assert not torch.equal(other, whole[0])


def test_a_small_cache_changes_nothing(normals, monkeypatch):
    expected = list(normals.batches(4, steps=5, seed=0))
    monkeypatch.setattr("hrbench.engine.training.CACHE_BYTES", 1)
    reads = []
    monkeypatch.setattr("hrbench.engine.training.read_image", lambda path: reads.append(path) or read_image(path))
    fresh = ViewedNormals(normals.samples, normals.view)
    for a, b in zip(fresh.batches(4, steps=5, seed=0), expected, strict=True):
        assert torch.equal(a, b)
    assert len(reads) > len(set(reads))  # what is not kept is read again


def test_a_loss_that_is_not_finite_stops_the_fit(toy):
    method = create_method(toy)
    fit = Fit(method, held_out=StackedNormals(torch.rand(2, 3, 4, 4)), seed=0, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(method.parameters())
    with pytest.raises(HrbenchError, match="the loss is nan at step 1 of 3"):
        fit.train(fit.held_out, lambda x: method.colour.sum() * float("nan"), optimizer, steps=3, batch_size=2)


def test_learnt_state_leaves_out_what_is_rebuilt():
    options = {"backbone": "resnet10t", "weights": "random", "strides": (4,), "flow_steps": 1}
    method = create_method("fastflow", **options)
    state = learnt_state(method)
    assert state
    assert not any(key.startswith("backbone.") for key in state)
    with seeded(1):
        other = create_method("fastflow", **options)
    load_learnt_state(other, state)
    assert all(torch.equal(learnt_state(other)[key], value) for key, value in state.items())
    with pytest.raises(HrbenchError, match="do not fit FastFlow"):
        load_learnt_state(create_method("fastflow", **{**options, "flow_steps": 2}), state)


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    with seeded(1):
        torch.rand(5)
    assert torch.equal(torch.rand(1), expected)


def test_a_damaged_checkpoint_is_named(tmp_path, toy):
    path = tmp_path / "fit.pt"
    path.write_bytes(b"nonsense")
    normals = StackedNormals(torch.rand(2, 3, 4, 4))
    with pytest.raises(HrbenchError, match=r"fit\.pt: not a readable checkpoint"):
        Fit(create_method(toy), held_out=normals, seed=0, device=torch.device("cpu"), checkpoint=path)
