"""The stream of training inputs and the fit loop."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hrbench import HrbenchError, create_method, load_dataset
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import View
from hrbench.imaging import read_image
from hrbench.method import Method, Prediction
from hrbench.testing import StackedNormals

CPU = torch.device("cpu")


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
    monkeypatch.setattr("hrbench.engine.normals.CACHE_BYTES", 1)
    reads = []
    monkeypatch.setattr("hrbench.engine.normals.read_image", lambda path: reads.append(path) or read_image(path))
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


@pytest.mark.parametrize("late", [1, 3, 50])
def test_losses_that_are_read_late_are_the_same_and_a_bad_one_is_named_by_its_step(toy, late):
    def trained(late, spoilt=None):
        normals = StackedNormals(torch.rand((6, 3, 4, 4), generator=torch.Generator().manual_seed(0)))
        with seeded(0):
            method = create_method(toy)
            fit = Fit(method, held_out=normals, seed=0, device=CPU)
            fit.late, taken = late, 0

            def loss(batch):
                nonlocal taken
                taken += 1
                return (batch - method.colour[:, None, None]).square().mean() * (np.nan if taken == spoilt else 1)

            optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
            return fit.train(normals, loss, optimizer, steps=8, batch_size=2), learnt_state(method)

    losses, state = trained(late)
    expected, expected_state = trained(1)
    assert losses == expected
    assert len(losses) == 8
    assert all(torch.equal(state[key], value) for key, value in expected_state.items())
    with pytest.raises(HrbenchError, match="the loss is nan at step 5 of 8"):
        trained(late, spoilt=5)


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_change_neither_the_stream_nor_how_often_an_image_is_decoded(normals, monkeypatch, workers):
    reads = []
    expected = list(normals.batches(4, steps=15, seed=5, start=2))
    monkeypatch.setattr("hrbench.engine.normals.read_image", lambda path: reads.append(path) or read_image(path))
    fresh = ViewedNormals(normals.samples, normals.view)
    loaded = list(fresh.loaded(fresh.order(4, steps=15, seed=5, start=2), workers=workers))
    assert {batch.dtype for batch in loaded} == {torch.uint8}
    assert all(torch.equal(a.float() / 255, b) for a, b in zip(loaded, expected, strict=True))
    assert sorted(reads) == sorted(sample.image for sample in normals.samples)


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


class Patient(Method):
    """Trains by one optimizer for as long as a held-out loss falls; between stages it draws, and slows down."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = torch.nn.Parameter(torch.rand(3))
        self.register_buffer("drawn", torch.zeros(()))

    def fit(self, normals, context):
        optimizer = torch.optim.Adam([self.colour], lr=0.3)
        best = float("inf")
        for _ in range(8):
            context.train(normals, self.loss, optimizer, steps=3, batch_size=2)
            with torch.no_grad():
                held_out = float(self.loss(torch.stack(list(context.held_out))))
            if held_out > best:
                break
            best = held_out
            self.drawn += torch.rand(()) * self.colour.detach().sum() + np.random.rand() + random.random()  # noqa: NPY002
            optimizer.param_groups[0]["lr"] *= 0.9

    def loss(self, batch):
        return (batch - self.colour[:, None, None]).square().mean()

    def predict(self, batch):
        return Prediction({"distance": (batch - self.colour[:, None, None]).square().sum(dim=1)})


def fitted(
    make, checkpoint: Path, monkeypatch, kill_at: int | None = None, late: int = 1
) -> tuple[dict[str, torch.Tensor], int]:
    """Fit, or go on until a step at which the process is killed; return what was learnt, and how many steps it took."""
    real, taken = torch.optim.Adam.step, 0

    def step(self, *args, **kwargs):
        nonlocal taken
        if taken == kill_at:
            raise Killed
        taken += 1
        return real(self, *args, **kwargs)

    normals = StackedNormals(torch.rand((6, 3, 4, 4), generator=torch.Generator().manual_seed(0)))
    with monkeypatch.context() as patch, seeded(0):
        patch.setattr(torch.optim.Adam, "step", step)
        method = make()
        fit = Fit(method, held_out=normals, seed=0, device=CPU, checkpoint=checkpoint)
        fit.late = late
        method.fit(normals, fit)
    return learnt_state(method), taken


@pytest.mark.parametrize("every", [30.0, -1.0])  # seconds between checkpoints
def test_a_fit_of_several_stages_continues_to_the_same_bits(toy, tmp_path, monkeypatch, every):
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", every)
    for name, make in {"toy": lambda: create_method(toy, steps=8, noise=0.1), "patient": Patient}.items():
        whole, steps = fitted(make, tmp_path / name / "fit.pt", monkeypatch)
        assert steps > 6
        for kill_at in range(1, steps):
            path = tmp_path / f"{name}-{kill_at}" / "fit.pt"
            with pytest.raises(Killed):
                fitted(make, path, monkeypatch, kill_at, late=1 + kill_at % 3)
            resumed, _ = fitted(make, path, monkeypatch, late=2)
            assert all(torch.equal(resumed[key], value) for key, value in whole.items()), (name, kill_at)


def test_a_fit_that_does_another_thing_when_it_is_continued_is_refused(toy, tmp_path, monkeypatch):
    path = tmp_path / "fit.pt"
    with pytest.raises(Killed):
        fitted(lambda: create_method(toy, steps=8), path, monkeypatch, 5)
    with pytest.raises(HrbenchError, match=r"3 steps are asked for where the interrupted fit took 4.*delete.*fit"):
        fitted(lambda: create_method(toy, steps=6), path, monkeypatch)


def test_what_was_kept_of_a_fit_is_forgotten(toy, tmp_path):
    normals = StackedNormals(torch.rand(2, 3, 4, 4))
    method = create_method(toy, steps=2)
    fit = Fit(method, held_out=normals, seed=0, device=CPU, checkpoint=tmp_path / "fit.pt")
    method.fit(normals, fit)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["fit-0.pt", "fit-1.pt"]
    fit.forget()
    assert not list(tmp_path.iterdir())


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
        Fit(create_method(toy), held_out=normals, seed=0, device=CPU, checkpoint=path)
    torch.save({"finished": [], "losses": []}, path)
    with pytest.raises(HrbenchError, match=r"fit\.pt: not a readable checkpoint \(of another version"):
        Fit(create_method(toy), held_out=normals, seed=0, device=CPU, checkpoint=path)
