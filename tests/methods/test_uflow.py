"""U-Flow: the graph, its published sizes, loss and maps, the decision, saving, and the authors' checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import PlainContext, noise_normals
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hrbench._util.resources import methods_package
from hrbench.data.sample import Sample
from hrbench.engine.inference import predict
from hrbench.engine.training import Fit, learnt_state, load_learnt_state
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Method, OnHost
from hrbench.registry import create_method

methods_package()
from hrbench.methods import _nfa, uflow  # noqa: E402
from hrbench.methods._flow import FlowStep, energy  # noqa: E402
from hrbench.methods.uflow import UFlow, UShapedFlow  # noqa: E402

SMALL = {
    "backbone": "test_resnet",
    "weights": "random",
    "strides": (4, 8),
    "flow_steps": 2,
    "batch_size": 4,
    "steps": 6,
}
PAIR = {
    **SMALL,
    "backbone": "cait_xxs24_224",
    "coarse_backbone": "cait_xxs24_224",
    "blocks": (1, 0),
    "norm": "none",
}


def fitted(**options: object) -> tuple[Method, PlainContext]:
    torch.manual_seed(0)
    method = create_method("uflow", **{**SMALL, **options})
    context = PlainContext()
    method.fit(noise_normals(24), context)
    return method.eval(), context


@torch.no_grad()
def map_of(method: Method, batch: Tensor) -> Tensor:
    return method.predict(batch).maps["anomaly"]


def batch(size: tuple[int, int] = (64, 64), n: int = 3) -> Tensor:
    return torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(7))


def tiny() -> UShapedFlow:
    """A float64 flow on ([6, 4, 4], [8, 2, 2]) whose parameters are far from their initial values."""
    torch.manual_seed(0)
    flow = UShapedFlow((6, 8)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def tiny_features(n: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 6, 4, 4, dtype=torch.float64), torch.randn(n, 8, 2, 2, dtype=torch.float64)]


# --- The graph ---


def test_the_inverse_undoes_the_flow() -> None:
    flow, x = tiny(), tiny_features()
    z, log_det = flow(x)
    back, inverse_log_det = flow.inverse(z)
    for found, expected in zip(back, x, strict=True):
        assert (found - expected).abs().max() < 1e-10
    assert (log_det + inverse_log_det).abs().max() < 1e-10


def test_the_inverse_undoes_a_flow_over_three_scales() -> None:
    torch.manual_seed(0)
    flow = UShapedFlow((5, 7, 19), 2).double()
    x = [torch.randn(2, c, s, 2 * s, dtype=torch.float64) for c, s in ((5, 8), (7, 4), (19, 2))]
    back, _ = flow.inverse(flow(x)[0])
    for found, expected in zip(back, x, strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_the_inverse_and_the_start_at_the_paper_s_size() -> None:
    torch.manual_seed(0)
    flow = UShapedFlow((768, 384))
    x = [torch.randn(1, 768, 28, 28), torch.randn(1, 384, 14, 14)]
    z, log_det = flow(x)
    back, inverse_log_det = flow.inverse(z)
    assert max(float((b - a).abs().max()) for a, b in zip(x, back, strict=True)) < 1e-4
    assert float((log_det + inverse_log_det).abs()) < 1e-2
    values = torch.cat([t.flatten() for t in z])
    assert len(values) == 677_376
    assert float(values.var()) == pytest.approx(1.01, abs=0.02)
    assert abs(float(log_det)) < 2000  # fresh: of the order of 300, in 677,376 dimensions


def test_log_det_is_that_of_the_jacobian() -> None:
    flow, x = tiny(), tiny_features(1)

    def flat(v: Tensor) -> Tensor:
        z, _ = flow([v[:96].view(1, 6, 4, 4), v[96:].view(1, 8, 2, 2)])
        return torch.cat([t.flatten() for t in z])

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat([t.flatten() for t in x]))
    assert jacobian.shape == (128, 128)
    assert abs(float((flow(x)[1] - torch.linalg.slogdet(jacobian).logabsdet).detach())) < 1e-8


def test_log_det_is_per_sample() -> None:
    flow, x = tiny(), tiny_features(3)
    log_det = flow(x)[1].detach()
    assert log_det.shape == (3,)
    for scale in range(2):
        changed = [t.clone() for t in x]
        changed[scale][1] += 1
        other = flow(changed)[1].detach()
        torch.testing.assert_close(other[[0, 2]], log_det[[0, 2]])
        assert abs(float(other[1] - log_det[1])) > 1e-3
    torch.testing.assert_close(flow([t[[2, 0, 1]] for t in x])[1].detach(), log_det[[2, 0, 1]])


@pytest.mark.parametrize(
    ("channels", "count", "latents"),
    [
        ((768, 384), 12_216_480, (816, 192)),
        ((64, 128, 256), 1_479_880, (84, 80, 128)),
        ((256, 512, 1024), 23_594_080, (336, 320, 512)),
    ],
)
def test_parameters_and_latent_channels_are_as_published(
    channels: tuple[int, ...], count: int, latents: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        flow = UShapedFlow(channels)
    assert sum(p.numel() for p in flow.parameters()) == count
    assert flow.latent_channels == latents


@torch.no_grad()
def test_each_scale_of_the_latents_keeps_its_grid() -> None:
    channels, latents = (64, 128, 256), (84, 80, 128)
    found, log_det = UShapedFlow(channels)([torch.zeros(2, c, 8 >> i, 12 >> i) for i, c in enumerate(channels)])
    assert [tuple(z.shape) for z in found] == [(2, c, 8 >> i, 12 >> i) for i, c in enumerate(latents)]
    assert sum(z.numel() for z in found) == sum(2 * c * (8 >> i) * (12 >> i) for i, c in enumerate(channels))
    assert log_det.shape == (2,)


@pytest.mark.parametrize(
    ("preset", "flow", "norms", "multiple"),
    [
        ("paper", 12_216_480, 0, 32),
        ("paper-resnet18", 1_479_880, 2_809_856, 16),
        ("paper-wrn50", 23_594_080, 11_239_424, 16),
        ("native", 1_479_880, 0, 16),
    ],
)
def test_presets_have_the_published_size(preset: str, flow: int, norms: int, multiple: int) -> None:
    with torch.device("meta"):
        method = create_method("uflow", preset=preset, weights="random")
    assert isinstance(method, UFlow)
    assert sum(p.numel() for p in method.flow.parameters()) == flow
    assert sum(p.numel() for p in method.norms.parameters()) == norms
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == flow + norms
    assert method.multiple == multiple
    if preset == "paper":
        pair = method.backbone
        assert (pair.channels, pair.strides) == ((768, 384), (16, 32))
        assert (pair.fine.blocks, pair.coarse.blocks) == ((40,), (20,))
        assert [len(t.network.blocks) for t in (pair.fine, pair.coarse)] == [41, 21]


def test_four_channels_fill_two_by_two_pixels_in_order() -> None:
    flow = UShapedFlow((2, 16), 1)
    for step in flow.steps_in_order():  # the identity: no coupling, no permutation
        torch.nn.init.zeros_(step.subnet[2].weight)
        torch.nn.init.zeros_(step.subnet[2].bias)
        step.set_permutation(torch.arange(len(step.permutation)))
    coarse = torch.arange(16.0).view(1, 16, 1, 1)
    (fine, low), log_det = flow([torch.full((1, 2, 2, 2), -1.0), coarse])
    torch.testing.assert_close(fine[0, :2], torch.full((2, 2, 2), -1.0))  # the fine features come first
    torch.testing.assert_close(fine[0, 2], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    torch.testing.assert_close(fine[0, 3], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    torch.testing.assert_close(low.flatten(), torch.arange(8.0, 16.0))
    assert float(log_det.detach().abs()) < 1e-5


# --- Loss and training ---


def test_the_loss_does_not_depend_on_the_batch_size() -> None:
    method, _ = fitted()
    x = batch(n=2)
    torch.testing.assert_close(method.loss(method.features(torch.cat((x, x)))), method.loss(method.features(x)))


def test_the_loss_is_per_sample() -> None:
    method, _ = fitted()
    x = batch()
    with torch.no_grad():
        features = method.features(x)
        z, log_det = method.latents(features)
        expected = sum(0.5 * sum(float(t[i].double().square().sum()) for t in z) - float(log_det[i]) for i in range(3))
        assert float(method.loss(features)) == pytest.approx(expected / 3, rel=1e-5)


def test_training_whitens_held_out_features() -> None:
    """Mean z^2 near 1 on unseen data; near 1 / batch would betray a loss summed over the batch."""
    torch.manual_seed(0)
    mixing = torch.eye(8) + 0.3 * torch.randn(8, 8)

    def sample(n: int) -> list[Tensor]:
        fine = torch.einsum("ij,bjhw->bihw", mixing, torch.randn(n, 8, 8, 8)) + 1
        return [fine, 2 * torch.randn(n, 8, 4, 4)]

    flow = UShapedFlow((8, 8), 2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-2)
    for _ in range(150):
        z, log_det = flow(sample(16))
        loss = sum(0.5 * t.square().sum(dim=(1, 2, 3)) for t in z).sub(log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z, _ = flow(sample(64))
    values = torch.cat([t.flatten() for t in z])
    assert float(values.square().mean()) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("norm", ["layer-affine", "layer", "channel", "none"])
def test_the_loss_falls(norm: str) -> None:
    _, context = fitted(norm=norm, input_size=64 if norm == "layer-affine" else None)
    assert context.losses[-1] < context.losses[0]


def test_epochs_become_steps_with_the_last_incomplete_batch() -> None:
    assert fitted(steps=None, epochs=3, batch_size=10)[1].steps == 3 * 3  # of 24 inputs


# --- Maps ---


class Planted(torch.nn.Module):
    """A flow that gives the same latents whatever comes in."""

    def __init__(self, latents: list[Tensor]) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        n = len(features[0])
        return [z.expand(n, *z.shape[1:]) for z in self.latents], torch.zeros(n)


def planted(latents: list[Tensor], **options: object) -> Method:
    torch.manual_seed(0)
    method = create_method("uflow", **{**SMALL, **options}).eval()
    method.flow = Planted(latents)
    method.spreads = torch.nn.ModuleList(uflow._Spread(z.shape[1]) for z in latents)
    return method


@pytest.mark.parametrize(("value", "score"), [(0.0, 0.0), (1.0, 0.3935), (50.0, 1.0)])
def test_the_likelihood_map_has_its_closed_form(value: float, score: float) -> None:
    method = planted([torch.full((1, 8, 16, 16), value), torch.full((1, 4, 8, 8), value)], map="likelihood")
    found = map_of(method, batch(n=1))
    assert found.shape == (1, 64, 64)
    # The paper's 1 - mean p without the 1, which float32 would round away for strong anomalies.
    torch.testing.assert_close(1 + found, torch.full((1, 64, 64), score), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["energy", "likelihood"])
def test_maps_grow_with_the_latents(kind: str) -> None:
    ramp = torch.linspace(0, 5, 16).view(1, 1, 1, 16).expand(1, 3, 16, 16)
    found = map_of(planted([ramp, torch.ones(1, 3, 8, 8)], map=kind), batch(n=1))[0]
    assert (found[0].diff() > 0).sum() >= 14
    assert (found[0].diff() >= 0).all()


def test_energy_does_not_saturate_where_likelihood_does() -> None:
    strong = torch.full((1, 4, 16, 16), 30.0)
    strong[..., 8:] = 40
    coarse = torch.full((1, 4, 8, 8), 40.0)
    flat = map_of(planted([strong, coarse], map="likelihood"), batch(n=1))
    assert len(flat.unique()) == 1
    apart = map_of(planted([strong, coarse]), batch(n=1))
    assert float(apart.max() - apart.min()) == pytest.approx((800 - 450) / 2)


def test_energy_is_the_mean_over_scales() -> None:
    method, _ = fitted()
    with torch.no_grad():
        z, _ = method.latents(method.features(batch()))
        coarse = functional.interpolate(energy(z[1]), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(map_of(method, batch()), ((energy(z[0]) + coarse) / 2)[:, 0])


@pytest.mark.parametrize("test", get_args(_nfa.NfaTest))
@pytest.mark.parametrize("interpolation", get_args(_nfa.Interpolation))
def test_nfa_map_and_decision_agree(test: str, interpolation: str) -> None:
    method, _ = fitted(map="nfa", test=test, interpolation=interpolation)
    bright = batch(n=2)
    bright[1, :, 20:40, 20:40] = 5
    with torch.no_grad():
        found = method.predict(bright)
    size = 64 if interpolation == "bilinear" else 16
    assert found.maps["anomaly"].shape == (2, size, size)
    decision = found.decided()
    assert decision is not None
    assert torch.equal(decision, found.maps["anomaly"] > 0)
    assert decision.dtype == torch.bool
    with torch.no_grad():
        z, _ = method.latents(method.features(bright))
        expected = -_nfa.log10_nfa(z, test=test, grid=(size, size), interpolation=interpolation)
    torch.testing.assert_close(found.maps["anomaly"], expected)


@pytest.mark.parametrize("test", ["tree", "tree-by-size"])
@pytest.mark.parametrize("interpolation", get_args(_nfa.Interpolation))
@pytest.mark.parametrize("recalibrate", ["none", "law"])
def test_the_host_decides_what_the_nfa_map_says(test: str, interpolation: str, recalibrate: str) -> None:
    options = {"test": test, "interpolation": interpolation, "recalibrate": recalibrate}
    method, _ = fitted(**options)
    full = create_method("uflow", **{**SMALL, **options, "map": "nfa"})
    full.load_state_dict(method.state_dict())
    images = batch(n=6)
    for number, image in enumerate(images):
        image[:, 20:40, 20:30] += number
    with torch.no_grad():
        found = method.predict_inputs(images, [1, 1, 1, 1, 1, 9])
        log_nfa = -full.eval().predict_inputs(images, [1, 1, 1, 1, 1, 9]).maps["anomaly"]
    assert isinstance(found.decision, OnHost)
    assert 0 < int((log_nfa < 0).sum()) < log_nfa.numel()
    assert torch.equal(found.decided(), log_nfa < 0)


def test_without_a_test_there_is_no_decision() -> None:
    method, _ = fitted(test="none")
    assert method.predict(batch()).decision is None


# --- The decision of a tiled image ---


def test_decisions_of_n_inputs_pay_for_n_inputs() -> None:
    method, _ = fitted(map="nfa")
    alone = map_of(method, batch())
    with torch.no_grad():
        cut = method.predict_inputs(batch(), [1, 10, 1000]).maps["anomaly"]
    torch.testing.assert_close(alone - cut, torch.tensor([0.0, 1, 3])[:, None, None].expand_as(alone))


def test_a_weak_region_counts_alone_but_not_among_many_tiles(tmp_path: Path) -> None:
    fine, coarse = torch.full((1, 20, 16, 16), 0.5), torch.full((1, 20, 8, 8), 0.5)
    for level in torch.linspace(1.5, 3, 60):
        fine[:, :, 4, 4] = level
        method = planted([fine, coarse], map="nfa")
        score = float(map_of(method, batch(n=1)).max())
        if score > 0.05:
            break
    assert 0.05 < score < math.log10(9)  # significant by less than the price of nine tiles
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((160, 160, 3), np.uint8)).save(path)
    sample = Sample("a.png", path, None, 0, "good", "test", "x")

    def called(view: str) -> int:
        (item,) = predict(method, [sample], View.parse(view), torch.device("cpu"))
        assert item.decision is not None
        return int(item.decision.sum())

    assert called("whole:64") > 0
    assert called("tiled:64:16") == 0


def test_one_tile_is_the_whole_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray((255 * batch(n=1)[0].permute(1, 2, 0).numpy()).astype(np.uint8)).save(path)
    sample = Sample("a.png", path, None, 0, "good", "test", "x")
    method, _ = fitted()
    tiled, whole = (
        next(iter(predict(method, [sample], View.parse(view), torch.device("cpu"))))
        for view in ("tiled:64:16", "whole:64")
    )
    assert torch.equal(tiled.maps["anomaly"], whole.maps["anomaly"])
    np.testing.assert_array_equal(tiled.decision, whole.decision)


def test_a_shift_by_a_tile_shifts_the_map(tmp_path: Path) -> None:
    pattern = (255 * batch((192, 64), n=1)[0].permute(1, 2, 0).numpy()).astype(np.uint8)
    samples = []
    for number, shift in enumerate((0, 64)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.roll(pattern, shift, axis=0)).save(path)
        samples.append(Sample(path.name, path, None, 0, "good", "test", "x"))
    method, _ = fitted()
    first, second = predict(method, samples, View.parse("tiled:64:0"), torch.device("cpu"))
    torch.testing.assert_close(first.maps["anomaly"].roll(64, 0), second.maps["anomaly"], rtol=1e-4, atol=1e-4)


# --- Determinism, saving, precision ---


def test_equal_seeds_give_equal_bits() -> None:
    assert torch.equal(map_of(fitted()[0], batch()), map_of(fitted()[0], batch()))


def test_saved_and_loaded_predicts_the_same_bits() -> None:
    method, _ = fitted(recalibrate="channel")
    torch.manual_seed(0)  # the backbone is rebuilt, not saved
    other = create_method("uflow", **SMALL, recalibrate="channel").eval()
    assert not torch.equal(map_of(other, batch()), map_of(method, batch()))
    load_learnt_state(other, learnt_state(method))
    assert torch.equal(map_of(other, batch()), map_of(method, batch()))


def test_images_of_a_batch_do_not_mix() -> None:
    for options in (SMALL, PAIR):
        method, _ = fitted(**options)
        together = map_of(method, batch())
        torch.testing.assert_close(map_of(method, batch()[1:2]), together[1:2], rtol=1e-4, atol=1e-5)


def test_the_flow_stays_in_float32_under_autocast() -> None:
    method, _ = fitted()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = method.features(batch())
        z, log_det = method.latents(features)
        loss = method.loss(features)
        found = method.predict(batch()).maps["anomaly"]
    assert {*(t.dtype for t in z), log_det.dtype, loss.dtype, found.dtype} == {torch.float32}
    assert torch.isfinite(loss)


# --- Backbones ---


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_any_pyramid_whose_strides_double(backbone: str) -> None:
    method, context = fitted(backbone=backbone, strides=(8, 4), steps=30)
    assert method.backbone.strides == (4, 8)
    assert sum(context.losses[-5:]) < sum(context.losses[:5])
    assert map_of(method, batch((48, 80))).shape == (3, 12, 20)


def test_a_pair_of_transformers() -> None:
    method, context = fitted(**PAIR)
    assert method.multiple == 32
    assert context.losses[-1] < context.losses[0]
    assert map_of(method, batch((64, 96))).shape == (3, 4, 6)
    assert {name.split(".")[1] for name in method.weights_record()} == {"fine", "coarse"}
    assert not any(key.startswith("backbone") for key in learnt_state(method))


def test_the_second_transformer_sees_half_the_size() -> None:
    torch.manual_seed(0)
    pair = create_method("uflow", **PAIR).backbone
    images = batch((64, 96), n=1)
    fine, coarse = pair(images)
    assert fine.shape[2:] == (4, 6)
    assert coarse.shape[2:] == (2, 3)
    half = functional.interpolate(images, (32, 48), mode="bicubic", align_corners=True)
    assert torch.equal(coarse[0, :, 1, 2], pair.coarse(half)[0][0, 5])
    assert torch.equal(fine[0, :, 1, 2], pair.fine(images)[0][0, 8])


def test_an_affine_layer_norm_refuses_other_sizes() -> None:
    method, _ = fitted(norm="layer-affine", input_size=64)
    assert method.input_size == 64
    with pytest.raises(HrbenchError, match="features are 16x24, expected 16x16"):
        method.predict(batch((64, 96)))


def test_only_flow_and_norms_learn() -> None:
    torch.manual_seed(0)
    method = create_method("uflow", **{**SMALL, "norm": "layer-affine", "input_size": 64}).train()
    method.loss(method.features(batch())).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name
    assert not method.backbone.network.training


# --- Recalibration ---


def test_recalibrated_latents_of_held_out_images_have_unit_variance() -> None:
    held_out = torch.stack(list(PlainContext.held_out))
    plain, _ = fitted()
    for kind in ("scale", "channel"):
        method, _ = fitted(recalibrate=kind)
        with torch.no_grad():
            z, _ = method.latents(method.features(held_out))
            squares = [s(t).square().mean(dim=(0, 2, 3)) for s, t in zip(method.spreads, z, strict=True)]
        for square, spread in zip(squares, method.spreads, strict=True):
            assert float(square.mean()) == pytest.approx(1, abs=0.35)  # batches draw with replacement
            assert (len(spread.variance.unique()) == 1) == (kind == "scale")
        assert not torch.equal(map_of(method, batch()), map_of(plain, batch()))
    assert all((s.variance == 1).all() for s in plain.spreads)


def test_recalibration_without_held_out_images_is_refused_before_the_training() -> None:
    method = create_method("uflow", preset="demo", recalibrate="law")
    with pytest.raises(HrbenchError, match="fit looks at held-out normal images, and held_out is 0"):
        method.fit(noise_normals(4), Fit(method, held_out=None, seed=0, device=torch.device("cpu")))


def test_recalibration_quiets_a_wide_latent() -> None:
    """Latents of normal images that are too wide are all anomalies to the test, unless it is told."""
    torch.manual_seed(0)
    wide = [2 * torch.randn(1, 20, 16, 16), 3 * torch.randn(1, 20, 8, 8)]
    method = planted(wide, recalibrate="scale", test="tree")
    method.flow.latent_channels = (20, 20)
    assert method.predict(batch(n=1)).decided().float().mean() > 0.5
    method.recalibrate(PlainContext())
    assert [float(s.variance.mean()) for s in method.spreads] == pytest.approx([4, 9], rel=0.1)
    assert not method.predict(batch(n=1)).decided().any()


def test_the_law_of_dependent_channels_is_measured() -> None:
    """Five copies of four independent channels have four degrees of freedom, not twenty."""
    torch.manual_seed(0)
    copies = [torch.randn(1, 4, 64, 64).repeat(1, 5, 1, 1), 3 * torch.randn(1, 20, 32, 32)]
    method = planted(copies, recalibrate="law", test="tree-by-size")
    method.flow.latent_channels = (20, 20)
    assert method.predict(batch(n=1)).decided().any()
    method.recalibrate(PlainContext())
    assert [float(s.freedom) for s in method.spreads] == pytest.approx([4, 20], rel=0.1)
    assert not method.predict(batch(n=1)).decided().any()


# --- The authors' checkpoints ---


def freia_state(flow: UShapedFlow, prefix: str = "flow.") -> dict[str, Tensor]:
    """Tensors under the names that FrEIA gives a graph of three modules (split, upsampler, concat) between stages."""
    state, number = {}, 0
    for stage in flow.stages:
        for step in stage.steps:
            channels = step.offset.shape[1]
            matrix = torch.zeros(channels, channels, 1, 1)
            for row, column in enumerate(torch.randperm(channels).tolist()):
                matrix[row, column] = 1
            here = f"{prefix}module_list.{number}."
            state |= {
                here + "global_scale": step.scale + 0.3 * torch.randn(1, channels, 1, 1),
                here + "global_offset": torch.randn(1, channels, 1, 1),
                here + "w_perm": matrix,
                here + "w_perm_inv": matrix.transpose(0, 1),
            }
            for name, value in step.subnet.state_dict().items():
                state[here + f"subnet.{name}"] = value + 0.2 * torch.randn_like(value)
            number += 1
        state[f"{prefix}module_list.{number + 1}.downsample_kernel"] = torch.zeros(8, 1, 2, 2)
        number += 3
    return {key: value.detach() for key, value in state.items()}


def dense_step(state: dict[str, Tensor], here: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """One of FrEIA's blocks, in the words of its documentation: dense permutation, clamp 2 tanh, damped by 0.1."""
    active = x.shape[1] // 2
    x1, x2 = x[:, : x.shape[1] - active], x[:, x.shape[1] - active :]
    a = x1
    for layer in (0, 2):
        weight, bias = state[f"{here}subnet.{layer}.weight"], state[f"{here}subnet.{layer}.bias"]
        a = functional.conv2d(a.relu() if layer else a, weight, bias, padding=weight.shape[-1] // 2)
    a = 0.1 * a
    s = 2 * torch.tanh(a[:, :active])
    y = torch.cat((x1, x2 * s.exp() + a[:, active:]), dim=1)
    gain = 0.1 * functional.softplus(state[here + "global_scale"], beta=0.5)
    y = functional.conv2d(y * gain + state[here + "global_offset"], state[here + "w_perm"])
    return y, s.sum(dim=(1, 2, 3)) + gain.log().sum() * x.shape[2] * x.shape[3]


def saved(content: object, tmp_path: Path) -> str:
    path = tmp_path / "theirs.ckpt"
    torch.save(content, path)
    return str(path)


def test_a_checkpoint_of_freia_replaces_training(tmp_path: Path) -> None:
    torch.manual_seed(3)
    method = create_method("uflow", **SMALL)
    state = freia_state(method.flow)
    path = saved({"epoch": 7, "state_dict": {**state, "flow.other": torch.zeros(3)}}, tmp_path)
    loaded, context = fitted(checkpoint=path)
    assert context.losses == []
    with torch.no_grad():
        fine, coarse = (norm(x) for norm, x in zip(loaded.norms, loaded.features(batch()), strict=True))
        x, total = coarse, 0.0
        for number in (0, 1):
            x, log_det = dense_step(state, f"flow.module_list.{number}.", x)
            total = total + log_det
        up = 4 * (x.shape[1] // 8)
        low = x[:, up:]
        x = torch.cat((fine, functional.pixel_shuffle(x[:, :up], 2)), dim=1)
        for number in (5, 6):
            x, log_det = dense_step(state, f"flow.module_list.{number}.", x)
            total = total + log_det
        found, found_log_det = loaded.latents(loaded.features(batch()))
    torch.testing.assert_close(found[0], x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], low, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_log_det, total, rtol=1e-4, atol=1e-1)


def test_a_checkpoint_brings_its_layer_norms(tmp_path: Path) -> None:
    torch.manual_seed(3)
    method = create_method("uflow", **SMALL, norm="layer-affine", input_size=64)
    state = freia_state(method.flow, prefix="")
    for number, norm in enumerate(method.norms):
        for kind, value in norm.state_dict().items():
            state[f"extractor.norms.{number}.{kind}"] = torch.randn_like(value)
    loaded, _ = fitted(norm="layer-affine", input_size=64, checkpoint=saved(state, tmp_path))
    for number, norm in enumerate(loaded.norms):
        assert torch.equal(norm.weight, state[f"extractor.norms.{number}.weight"])
        assert torch.equal(norm.bias, state[f"extractor.norms.{number}.bias"])


def with_extractor(method: Method) -> dict[str, Tensor]:
    """A state dict of a flow and of the extractors it was trained on."""
    state = freia_state(method.flow)
    for part in method.restored():
        network = method.get_submodule(part).network
        state |= {f"theirs.{part[::-1]}.{key}": value.detach() for key, value in network.state_dict().items()}
    return state


@pytest.mark.parametrize("options", [SMALL, PAIR], ids=["pyramid", "pair of one architecture"])
def test_a_flow_is_not_joined_to_another_backbone(options: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)  # as in `fitted`, so that the random weights are the same
    state = with_extractor(create_method("uflow", **options))
    fitted(**options, checkpoint=saved(state, tmp_path))
    fitted(**options, checkpoint=saved({key: value.half() for key, value in state.items()}, tmp_path))
    torch.manual_seed(5)
    other = with_extractor(create_method("uflow", **options))
    with pytest.raises(
        HrbenchError, match=r"its extractor is not \w+ random, \d+ of \d+ tensors of the same names differ"
    ):
        fitted(**options, checkpoint=saved(other, tmp_path))


def test_a_flow_without_the_extractor_it_was_trained_on_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    method = create_method("uflow", **SMALL)
    fitted(checkpoint=saved(with_extractor(method), tmp_path))
    assert not caplog.messages
    fitted(checkpoint=saved(freia_state(method.flow), tmp_path))
    assert [message.partition("ckpt' ")[2] for message in caplog.messages] == [
        "holds no weights of test_resnet random: whether its flow was trained on them is not known"
    ]


def test_layer_norms_of_a_checkpoint_are_not_left_out(tmp_path: Path) -> None:
    state = freia_state(create_method("uflow", **SMALL).flow)
    state |= {f"norms.0.{kind}": torch.zeros(64, 16, 16) for kind in ("weight", "bias")}
    with pytest.raises(HrbenchError, match=r"norms.0.weight is a layer norm of shape \(64, 16, 16\), expected norm="):
        fitted(checkpoint=saved(state, tmp_path))


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.manual_seed(3)
    method = create_method("uflow", **SMALL)
    state = freia_state(method.flow)

    def refused(content: object, match: str) -> None:
        with pytest.raises(HrbenchError, match=match):
            fitted(checkpoint=saved(content, tmp_path))

    refused({"a": torch.zeros(2)}, r"0 flow steps .*expected 4 in one graph")
    refused({**state, **{"ema." + k: v for k, v in state.items()}}, r"8 flow steps .*'ema.flow.' and 'flow.'")
    refused({k: v for k, v in state.items() if "1.global_scale" not in k}, r"module_list.1 has no global_scale")
    refused({**state, "flow.module_list.1.global_scale": torch.zeros(1, 2, 1, 1)}, r"is \(1, 2, 1, 1\), expected")
    soft = torch.rand_like(state["flow.module_list.0.w_perm"])
    refused({**state, "flow.module_list.0.w_perm": soft}, "w_perm is not a permutation")
    refused({k: v for k, v in state.items() if "0.w_perm" not in k}, "w_perm is none")
    refused([1, 2], "holds a list, expected a state dict")
    refused(Path("x"), "not readable as tensors only")
    with pytest.raises(HrbenchError, match=r"nowhere.ckpt'?: no such file"):
        fitted(checkpoint="nowhere.ckpt")
    path = saved(state, tmp_path)
    with pytest.raises(HrbenchError, match="0 layer norms of shape"):
        fitted(checkpoint=path, norm="layer-affine", input_size=64)


# --- Mistakes ---


def test_mistakes_are_named() -> None:
    for options, match in (
        ({"map": "prob"}, "option map of uflow is 'prob', expected one of"),
        ({"test": "block"}, "option test of uflow is 'block', expected one of"),
        ({"interpolation": "area"}, "option interpolation of uflow is 'area', expected one of"),
        ({"recalibrate": "all"}, "option recalibrate of uflow is 'all', expected one of"),
        ({"map": "nfa", "test": "none"}, "map 'nfa' needs a test"),
        ({"epochs": 2}, "steps or epochs, one of them; got 6 and 2"),
        ({"input_size": 250}, "input_size 250 of uflow: expected a multiple of 8"),
        ({"strides": (4, 16)}, r"strides \[4, 16\] of uflow: expected each twice"),
        ({"blocks": (1, 2)}, "belong to a coarse_backbone"),
        ({"coarse_backbone": "cait_xxs24_224"}, "no block is known for test_resnet"),
        ({**PAIR, "weights": "a.pth"}, "expected coarse_weights for cait_xxs24_224"),
        ({**PAIR, "blocks": (1,)}, r"blocks \[1\] of uflow: expected two"),
    ):
        with pytest.raises(HrbenchError, match=match):
            create_method("uflow", **{**SMALL, **options})
    with pytest.raises(HrbenchError, match="a coarse scale of 6 channels cannot feed"):
        UShapedFlow((4, 6))
    with pytest.raises(HrbenchError, match="features of uflow are 4x4, 3x2: expected each half"):
        UShapedFlow((8, 8))([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 3, 2)])


def test_steps_are_those_of_the_shared_module() -> None:
    assert all(isinstance(step, FlowStep) for step in UShapedFlow((8, 8)).steps_in_order())
