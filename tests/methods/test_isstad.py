"""ISSTAD: sizes, losses, SSIM, position, determinism, the frozen encoder, calibration, and stitching."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import PlainContext, noise_normals
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from hrbench._util.resources import methods_package
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import Look
from hrbench.errors import HrbenchError
from hrbench.registry import create_method
from hrbench.testing import StackedNormals

methods_package()
from hrbench.methods._mae import sincos_positions  # noqa: E402
from hrbench.methods._schedule import cosine  # noqa: E402
from hrbench.methods.isstad import classification_loss, gaussian_blur, ssim  # noqa: E402

SMALL = {
    "backbone": "test_vit",
    "weights": "random",
    "decoder_width": 32,
    "decoder_heads": 4,
    "decoder_depth": 3,
    "mae_depth": 2,
    "mae_batch_size": 2,
    "batch_size": 2,
    "mae_steps": 2,
    "steps": 2,
}


def made(**options: object) -> Any:
    torch.manual_seed(0)
    return create_method("isstad", **{**SMALL, **options})


def batch(n: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(7))


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


@torch.no_grad()
def maps_of(method: Any, images: Tensor) -> dict[str, Tensor]:
    return method.predict(images).maps


def test_published_sizes() -> None:
    with torch.device("meta"):
        method = create_method("isstad", preset="paper", weights="random")
    assert count(method.repairing_parameters()) == 39_011_072
    assert count(method.network.encoder.parameters()) + (1 + 196) * 1024 == 303_301_632
    assert count(method.classifier.parameters()) == 512 * 512 + 512
    assert method.multiple == 16
    # Nothing learns without being used: both stages' parameters are all there are.
    everything = {id(p) for p in method.parameters()}
    used = {id(p) for p in (*method.network.parameters(), *method.repairing_parameters())}
    assert used == everything


def test_every_parameter_of_a_stage_has_a_gradient() -> None:
    method = made(decoder_depth=3, mae_depth=3)
    method.painting_loss(batch()).backward()
    assert all(p.grad is not None for p in method.network.parameters())
    method.zero_grad()
    torch.manual_seed(1)
    method.loss(batch()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.repairing_parameters())
    assert all(p.grad is None for p in method.network.encoder.parameters())


def test_stage_one_trains_the_encoder_and_stage_two_freezes_it() -> None:
    method = made()
    seen: list[dict[str, Tensor]] = []

    class Context(PlainContext):
        def train(self, *args: Any, **kwargs: Any) -> list[float]:
            seen.append({k: v.clone() for k, v in method.state_dict().items()})
            return super().train(*args, **kwargs)

    method.fit(noise_normals(4), Context())
    seen.append(method.state_dict())
    start, painted, repaired = seen
    encoder = [key for key in start if key.startswith("network.encoder.")]
    assert any(not torch.equal(start[key], painted[key]) for key in encoder)
    assert all(torch.equal(painted[key], repaired[key]) for key in encoder)
    for key in ("network.decoder.blocks.2.linear1.weight", "classifier.weight"):  # first used in stage 2
        assert torch.equal(start[key], painted[key])
        assert not torch.equal(painted[key], repaired[key])
    assert not torch.equal(start["network.decoder.mask_token"], painted["network.decoder.mask_token"])
    assert torch.equal(painted["network.decoder.mask_token"], repaired["network.decoder.mask_token"])


def test_classification_loss() -> None:
    labels = torch.tensor([[[True, False, False, False]]])
    assert float(classification_loss(torch.zeros(1, 12, 2, 1, 4), labels)) == pytest.approx(0.693147, abs=1e-6)
    logits = torch.zeros(1, 2, 2, 1, 4)
    logits[:, :, 1, 0, 0] = 2
    logits[:, :, 0, 0, 1] = 2
    assert float(classification_loss(logits, labels)) == pytest.approx(0.466659, abs=1e-6)
    # The mean over the maps of each map's loss.
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 2, 5, 6), torch.rand(3, 5, 6) > 0.7
    each = [classification_loss(logits[:, k : k + 1], labels) for k in range(4)]
    torch.testing.assert_close(classification_loss(logits, labels), torch.stack(each).mean())


def test_ssim_is_scikit_images() -> None:
    first = batch(1, 40, 50)
    second = (first + 0.2 * first.flip(-1)).clamp(0, 1)
    # scikit-image mirrors at borders; a margin of zeros, cut off again, makes it do as we do.
    wide = [nn.functional.pad(x, (10, 10, 10, 10))[0].numpy() for x in (first, second)]
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, full = structural_similarity(*wide, channel_axis=0, full=True, **options)
    assert 0.5 < full.mean() < 0.99
    assert float(ssim(first, second)) == pytest.approx(float(full[:, 10:-10, 10:-10].mean()), abs=1e-5)
    assert float(ssim(first, first)) == pytest.approx(1.0, abs=1e-6)
    assert float(ssim(first, 1 - first)) < 0


def test_blur() -> None:
    for size in ((700, 300), (60, 70), (9, 1), (3, 5)):  # several bands of rows; less than the window
        x = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = gaussian_filter(x.numpy(), (2.0, 3.0), truncate=4.0)  # mirrors at borders
        np.testing.assert_allclose(gaussian_blur(x, (2.0, 3.0)), expected, rtol=2e-6)
    torch.testing.assert_close(gaussian_blur(torch.ones(30, 9), (4.0, 4.0)), torch.ones(30, 9))
    impulse = torch.zeros(60, 60)
    impulse[30, 30] = 1
    assert float(gaussian_blur(impulse, (4.0, 4.0)).sum()) == pytest.approx(1, abs=1e-5)
    edge = gaussian_blur(torch.ones(1, 40, 40), (1.5, 1.5), radius=5, zeros=True)
    assert float(edge[0, 20, 20]) == pytest.approx(1)
    assert float(edge[0, 0, 20]) == pytest.approx(0.5 + 0.266 / 2, abs=1e-2)


def test_what_is_changed_is_seen_where_it_is() -> None:
    """Tokens stay in order: with a decoder that keeps them apart, a changed patch changes its own pixels most."""
    method = made(backbone="test_vit").eval()
    x, changed = batch(1, 80, 96), batch(1, 80, 96)
    row, column = 3, 4
    changed[:, :, 16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)] = 0
    for block in (*method.network.encoder.blocks, *method.network.decoder.blocks):
        for name in ("attn", "self_attn"):
            if hasattr(block, name):
                mixing = getattr(block, name)
                out = mixing.proj if name == "attn" else mixing.out_proj
                nn.init.zeros_(out.weight)
    before, after = maps_of(method, x), maps_of(method, changed)
    for name in ("classification", "repair"):
        difference = (after[name] - before[name]).abs()[0]
        inside = torch.zeros_like(difference, dtype=torch.bool)
        inside[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)] = True
        assert difference[inside].mean() > 0
        assert float(difference[~inside].max()) <= 1e-6


def test_predict_is_deterministic_and_its_maps_are_the_definition() -> None:
    method = made().eval()
    x = batch(3, 64, 80)
    maps = maps_of(method, x)
    assert set(maps) == {"classification", "repair"}
    assert all(m.shape == (3, 64, 80) for m in maps.values())
    again = maps_of(method, x)
    assert all(torch.equal(maps[name], again[name]) for name in maps)
    with torch.no_grad():
        repaired, logits = method.look(method.network.normalised(x))
    assert logits.shape == (3, 3, 2, 64, 80)
    torch.testing.assert_close(maps["classification"], logits.softmax(dim=2)[:, :, 1].mean(dim=1))
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = ((method.network.denormalised(repaired) - x) / std).square().mean(dim=1)
    torch.testing.assert_close(maps["repair"], expected, rtol=1e-3, atol=1e-4)


def test_finish_multiplies_and_blurs() -> None:
    torch.manual_seed(0)
    maps = {"classification": torch.rand(50, 60), "repair": 3 * torch.rand(50, 60)}
    product = maps["classification"] * maps["repair"]
    torch.testing.assert_close(made(blur=0.0).finish(maps), product)
    torch.testing.assert_close(made(blur=2.0).finish(maps), gaussian_blur(product, (2.0, 2.0)))
    assert not made().finish({**maps, "classification": torch.zeros(50, 60)}).any()
    constant = made(blur=0.0).finish({**maps, "repair": torch.full((50, 60), 0.7)})
    torch.testing.assert_close(constant, 0.7 * maps["classification"])
    for name in maps:
        torch.testing.assert_close(made(blur=0.0, map=name).finish(maps), maps[name])
    torch.testing.assert_close(made().finish(maps), gaussian_blur(product, (1.0, 1.0)))
    # Of a whole image that was shrunk, the blur is in the input's pixels.
    found = made(blur=1.0, input_size=20).finish(maps)
    torch.testing.assert_close(found, gaussian_blur(product, (2.5, 3.0)))


def test_strong_anomalies_do_not_tie() -> None:
    """Where the probability is 1 the repair still ranks."""
    method = made(blur=0.0)
    found = method.finish({"classification": torch.ones(1, 5), "repair": torch.tensor([[4.0, 9.0, 9.5, 30.0, 1e6]])})
    assert (found.diff() > 0).all()


def test_residual_scale() -> None:
    def held(size: int, factor: float) -> dict[str, Tensor]:
        values = factor * torch.arange(1, size * size + 1).float().view(size, size)
        return {"classification": torch.ones(size, size), "repair": values}

    method = made(blur=0.0)
    method.calibrate([held(20, 1.0), held(20, 3.0)])
    assert float(method.residual_scale) == pytest.approx(2 * 398)
    torch.testing.assert_close(method.finish(held(20, 1.0)), held(20, 1.0)["repair"] / 796)
    # The rank of pixels is left alone, and the constant image of a perfect repair divides by no zero.
    method.calibrate([{"classification": torch.ones(4, 4), "repair": torch.zeros(4, 4)}])
    assert method.finish(held(20, 1.0)).isfinite().all()
    minmax = made(blur=0.0, residual="minmax").finish(held(20, 5.0))
    assert float(minmax.min()) == 0
    assert float(minmax.max()) == 1


def test_the_factors_are_stitched_before_the_product() -> None:
    """Two tiles that disagree: the product of the blends, not the blend of the products."""
    look = Look.parse("tiled:64:32")
    placement = look.place((64, 96))
    assert len(placement) == 2
    classification = torch.stack([torch.full((64, 64), v) for v in (0.0, 1.0)])
    repair = torch.stack([torch.full((64, 64), v) for v in (1.0, 0.0)])
    merged = {
        "classification": look.merge(classification, placement),
        "repair": look.merge(repair, placement),
    }
    found = made(blur=0.0).finish(merged)
    middle = found[32, 32:64]
    share = merged["classification"][32, 32:64]
    torch.testing.assert_close(middle, share * (1 - share))
    assert float(middle.max()) == pytest.approx(0.25, abs=0.01)
    assert not look.merge(classification * repair, placement).any()


def test_equal_seeds_give_equal_bits_and_saving_keeps_them(tmp_path: Path) -> None:
    def fitted() -> Any:
        with seeded(0):
            method = create_method("isstad", **SMALL)
            method.fit(noise_normals(4), PlainContext())
        return method.eval()

    method = fitted()
    maps = maps_of(method, batch())
    again = maps_of(fitted(), batch())
    assert all(torch.equal(maps[name], again[name]) for name in maps)
    method.residual_scale.fill_(3.0)
    torch.save(learnt_state(method), tmp_path / "w.pth")
    other = made().eval()
    load_learnt_state(other, torch.load(tmp_path / "w.pth", weights_only=True))
    assert all(torch.equal(maps[name], found) for name, found in maps_of(other, batch()).items())
    assert float(other.residual_scale) == 3
    # The encoder is learnt in stage 1, so it is part of what is saved; positions are not.
    assert any(key.startswith("network.encoder.blocks.5.") for key in learnt_state(method))
    assert not any("pos_embed" in key for key in learnt_state(method))
    assert method.weights_record() == {"encoder": "test_vit random"}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_fit_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Batches, drawn defects and learning rates depend on seed and step only."""
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", 0.0)
    options = {**SMALL, "mae_steps": 4, "steps": 4}

    def fit(checkpoint: Path | None, dies_after: int | None = None) -> Any:
        with seeded(0):
            method = create_method("isstad", **options)
            if dies_after is not None:
                name = ("painting_loss", "loss")[stage]
                whole, calls = getattr(method, name), iter(range(dies_after))

                def dying(images: Tensor) -> Tensor:
                    if next(calls, None) is None:
                        raise KeyboardInterrupt
                    return whole(images)

                setattr(method, name, dying)
            normals = noise_normals(4)
            method.fit(
                normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu"), checkpoint=checkpoint)
            )
        return method

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "fit.pt", dies_after=2)
    continued, whole = fit(tmp_path / "fit.pt").state_dict(), fit(None).state_dict()
    assert all(torch.equal(continued[key], whole[key]) for key in whole)


def test_epochs_become_steps() -> None:
    context = PlainContext()
    asked = []

    class Context(PlainContext):
        def train(self, *args: Any, **kwargs: Any) -> list[float]:
            asked.append(kwargs["steps"])
            return []

    context = Context()
    options = {"mae_steps": None, "mae_epochs": 3, "steps": None, "epochs": 2, "mae_batch_size": 4, "batch_size": 3}
    made(**options).fit(noise_normals(11), context)
    assert asked == [3 * 2, 2 * 4]  # an incomplete last batch counts in stage 2 only


def test_stage_two_of_the_paper_waves_and_does_not_clip() -> None:
    seen: list[tuple[float, float]] = []

    def stages(**options: object) -> list[tuple[float, float]]:
        seen.clear()
        method = made(**{"batch_size": 3, **options})
        method.loss = lambda images: 1e3 * sum(p.sum() for p in method.repairing_parameters())

        class Context(PlainContext):
            def train(self, normals: Any, loss: Any, optimizer: Any, **kwargs: Any) -> list[float]:
                def noted(opt: Any, args: Any, kwargs: Any) -> None:
                    length = torch.stack([p.grad.norm() for g in opt.param_groups for p in g["params"]]).norm()
                    seen.append((opt.param_groups[0]["lr"], float(length)))

                if kwargs["description"] == "paint":
                    return []
                optimizer.register_step_pre_hook(noted)
                return super().train(normals, loss, optimizer, **kwargs)

        method.fit(noise_normals(7), Context())
        return seen

    # Three steps are a pass of seven inputs.
    found = stages(steps=None, epochs=5, lr=1e-3, lr_period=2, clip=None)
    assert [rate for rate, _ in found[::3]] == pytest.approx([1e-3, 5.005e-4, 1e-6, 5.005e-4, 1e-3])
    assert all(found[k] == found[k - k % 3] for k in range(15))
    assert found[0][1] > 1e3
    found = stages(steps=5)
    assert [rate for rate, _ in found] == pytest.approx([5e-4 * cosine(k, 5, least=1e-3) for k in range(5)])
    assert all(length == pytest.approx(1, rel=1e-3) for _, length in found)


def test_a_drawn_defect_is_found_after_a_short_fit() -> None:
    """On smooth pictures a few steps are enough: a dark spot stands out in the map."""
    generator = torch.Generator().manual_seed(0)
    ramps = torch.linspace(0.3, 0.6, 64).expand(16, 3, 64, 64) + 0.1 * torch.rand((16, 3, 1, 1), generator=generator)
    with seeded(0):
        options = {"patch": 8, "lr": 3e-3, "mae_lr": 3e-3, "mae_steps": 15, "steps": 40, "corruption": "tiny"}
        method = create_method("isstad", **{**SMALL, **options, "mae_batch_size": 4, "batch_size": 4, "blur": 1.0})
        normals = StackedNormals(ramps)
        method.fit(normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu")))
    method.eval()
    spot = ramps[:1].clone()
    spot[:, :, 20:28, 36:44] = 0
    found = method.finish({name: m[0] for name, m in maps_of(method, spot).items()})
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[20:28, 36:44] = True
    rank = (found[inside][:, None] > found[~inside][None]).float().mean()
    assert float(rank) > 0.9


def test_positions_take_any_multiple_of_the_patch() -> None:
    method = made().eval()
    for size in ((16, 16), (48, 160)):
        assert maps_of(method, batch(1, *size))["repair"].shape == (1, *size)
    assert sincos_positions(64, (3, 10), (10, 10)).shape == (31, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map": "sum"}, "option map of isstad is 'sum', expected one of .*'product'"),
        ({"residual": "max"}, "option residual of isstad is 'max', expected one of"),
        ({"corruption": "holes"}, "option corruption of isstad is 'holes', expected one of .*'mixture'"),
        ({"mask_ratio": 1.0}, "mask_ratio of isstad is 1.0, expected more than 0 and less than 1"),
        ({"crop_area": 0.0}, "crop_area of isstad is 0.0"),
        ({"mae_depth": 4}, "mae_depth of isstad is 4, expected 1 to decoder_depth, 3"),
        ({"blur": -1.0}, "blur of isstad is -1.0"),
        ({"clip": 0.0}, "clip of isstad is 0.0, expected a number above 0"),
        ({"lr_period": 0}, "lr_period of isstad is 0, expected at least 1"),
        ({"mae_epochs": 2}, "expected mae_steps or mae_epochs, one of them; got 2 and 2"),
        ({"steps": None}, "expected steps or epochs, one of them; got None and None"),
        ({"backbone": "resnet18"}, "timm model 'resnet18' gives no patch tokens"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        made(**options)
