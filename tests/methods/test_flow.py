"""The flow step: invertible, with the log-determinant it claims, and with the published parameter counts."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from hrbench._util.resources import methods_package
from hrbench.errors import HrbenchError

methods_package()
from hrbench.methods import _flow  # noqa: E402


def tiny(clamp: str = "legacy", *, channels: int = 6, steps: int = 3) -> _flow.FlowSequence:
    """A float64 flow whose parameters are far from their initial values."""
    torch.manual_seed(0)
    flow = _flow.FlowSequence(channels, steps, (3, 1), clamp=clamp).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("clamp", get_args(_flow.Clamp))
@pytest.mark.parametrize("channels", [6, 7])
def test_inverse_undoes_forward(clamp: str, channels: int) -> None:
    flow = tiny(clamp, channels=channels)
    x = torch.randn(2, channels, 4, 5, dtype=torch.float64)
    z, log_det = flow(x)
    back, inverse_log_det = flow.inverse(z)
    assert (back - x).abs().max() < 1e-10
    assert (log_det + inverse_log_det).abs().max() < 1e-10
    assert (z - x).abs().max() > 0.1


@pytest.mark.parametrize("clamp", get_args(_flow.Clamp))
def test_log_det_is_that_of_the_jacobian(clamp: str) -> None:
    flow = tiny(clamp)
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v.view(1, 6, 4, 4))[0].flatten(), x.flatten())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert abs(float(flow(x)[1].detach() - expected)) < 1e-8


def test_log_det_is_per_sample() -> None:
    flow = tiny()
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    log_det = flow(x)[1].detach()
    assert log_det.shape == (3,)
    changed = x.clone()
    changed[1] += 1
    other = flow(changed)[1].detach()
    torch.testing.assert_close(other[[0, 2]], log_det[[0, 2]])
    assert abs(float(other[1] - log_det[1])) > 1e-3
    torch.testing.assert_close(flow(x[[2, 0, 1]])[1], log_det[[2, 0, 1]])


def test_clamps_differ_and_saturate_at_two() -> None:
    steps = [_flow.FlowStep(4, 1, clamp=clamp) for clamp in get_args(_flow.Clamp)]
    slopes = []
    for step in steps:
        step.subnet = nn.Conv2d(2, 4, 1)
        nn.init.zeros_(step.subnet.weight)
        nn.init.zeros_(step.subnet.bias)
        with torch.no_grad():
            step.subnet.bias[:2] = 0.01  # after the damping: 0.001
        slopes.append(float(step._coupling(torch.zeros(1, 2, 1, 1))[0].detach().max()) / 0.001)
        with torch.no_grad():
            step.subnet.bias[:2] = 1e4
        log_scale, shift = step._coupling(torch.zeros(1, 2, 1, 1))
        torch.testing.assert_close(log_scale, torch.full_like(log_scale, 2.0))
        assert not shift.any()
    assert slopes == pytest.approx([2.0, 1.0], abs=1e-3)


def test_fresh_step_scales_by_one() -> None:
    step = _flow.FlowStep(8)
    assert float(step.scale.detach().mean()) == pytest.approx(9.98652, abs=1e-4)
    torch.testing.assert_close(step._gain(), torch.ones(1, 8, 1, 1), atol=1e-6, rtol=0)


def test_fresh_flow_keeps_noise_about_noise() -> None:
    torch.manual_seed(0)
    z, log_det = _flow.FlowSequence(64, 8, (3, 1))(torch.randn(4, 64, 16, 16))
    assert float(z.detach().var()) == pytest.approx(1.0, abs=0.05)
    assert log_det.abs().max() < 0.01 * 64 * 16 * 16


@pytest.mark.parametrize(
    ("channels", "steps", "kernels", "ratio", "count"),
    [
        ((64, 128, 256), 8, (3,), 1.0, 4_657_408),
        ((64, 128, 256), 8, (3, 1), 1.0, 2_593_024),
        ((256, 512, 1024), 8, (3, 1), 1.0, 41_337_856),
        ((768,), 20, (3, 1), 0.16, 7_074_500),
    ],
)
def test_parameter_counts(channels, steps, kernels, ratio, count) -> None:
    with torch.device("meta"):
        flows = [_flow.FlowSequence(c, steps, kernels, hidden_ratio=ratio) for c in channels]
    assert sum(p.numel() for flow in flows for p in flow.parameters()) == count


def test_parameter_count_of_a_step_with_odd_channels() -> None:
    passive, active, k = 4, 3, 3
    hidden = passive
    expected = k * k * passive * hidden + hidden + k * k * hidden * 2 * active + 2 * active + 2 * 7
    assert sum(p.numel() for p in _flow.FlowStep(7, k).parameters()) == expected


@pytest.mark.parametrize(("channels", "count"), [((64, 128, 256), 917_504), ((256, 512, 1024), 3_670_016)])
def test_affine_layer_norm_counts_at_256(channels: tuple[int, ...], count: int) -> None:
    with torch.device("meta"):
        norms = [
            _flow.feature_norm("layer-affine", c, (256 // s, 256 // s))
            for c, s in zip(channels, (4, 8, 16), strict=True)
        ]
    assert sum(p.numel() for norm in norms for p in norm.parameters()) == count


def test_affine_layer_norm_names_the_size_it_is_tied_to() -> None:
    norm = _flow.feature_norm("layer-affine", 2, (4, 4))
    with pytest.raises(HrbenchError, match="features are 4x6, expected 4x4"):
        norm(torch.zeros(1, 2, 4, 6))
    with pytest.raises(HrbenchError, match="needs input_size"):
        _flow.feature_norm("layer-affine", 2)


def test_layer_norms_agree_before_training() -> None:
    x = torch.randn(2, 3, 4, 5) * 3 + 1
    affine = _flow.feature_norm("layer-affine", 3, (4, 5))
    torch.testing.assert_close(affine(x), _flow.feature_norm("layer", 3)(x))


def test_permutation_is_drawn_by_the_seed_and_saved() -> None:
    def make(seed: int) -> _flow.FlowSequence:
        torch.manual_seed(seed)
        return _flow.FlowSequence(16, 2)

    first, same, other = make(1), make(1), make(2)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(first(x)[0], same(x)[0])
    assert not torch.equal(first.steps[0].permutation, other.steps[0].permutation)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first(x)[0], other(x)[0])
    assert torch.equal(first.inverse(x)[0], other.inverse(x)[0])
    assert not any("permutation" in name for name, _ in first.named_parameters())


def test_permutation_gradient_is_that_of_indexing() -> None:
    permutation = torch.tensor([2, 0, 1])
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    (_flow._Permute.apply(x, permutation, torch.argsort(permutation)) * weight).sum().backward()
    expected = torch.zeros_like(weight)
    expected[:, permutation] = weight
    torch.testing.assert_close(x.grad, expected)
    assert torch.autograd.gradcheck(_flow._Permute.apply, (x, permutation, torch.argsort(permutation)))


def test_loss_does_not_depend_on_the_batch_size() -> None:
    flow = tiny()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)

    def loss(batch: Tensor) -> Tensor:
        z, log_det = flow(batch)
        return _flow.negative_log_likelihood([z], [log_det])

    torch.testing.assert_close(loss(torch.cat((x, x))), loss(x))


def test_loss_values() -> None:
    torch.manual_seed(0)
    shape, dimensions = (8, 32, 16, 16), 32 * 16 * 16
    zero = torch.zeros(8)
    assert float(_flow.negative_log_likelihood([torch.zeros(shape)], [zero])) == 0
    noise = float(_flow.negative_log_likelihood([torch.randn(shape), torch.zeros(shape)], [zero, zero]))
    assert noise == pytest.approx(dimensions / 2, abs=4 * (dimensions / 2) ** 0.5)
    assert float(_flow.negative_log_likelihood([torch.zeros(shape)], [torch.full((8,), 3.0)])) == -3


def test_training_whitens_held_out_features() -> None:
    # Mean z^2 near 1 on unseen data; near 1 / batch would betray a loss summed over the batch.
    torch.manual_seed(0)
    mix = torch.randn(8, 8)
    offset = torch.randn(8)[:, None, None]

    def sample(n: int) -> Tensor:
        return torch.einsum("cd,bdhw->bchw", mix, torch.randn(n, 8, 4, 4)) + offset

    flow = _flow.FlowSequence(8, 6, (1,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    losses: list[float] = []
    for _ in range(300):
        z, log_det = flow(sample(16))
        loss = _flow.negative_log_likelihood([z], [log_det])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < sum(losses[:20])
    held_out = flow(sample(64))[0].detach()
    assert float(held_out.square().mean()) == pytest.approx(1.0, abs=0.15)


def test_float32_under_autocast() -> None:
    # 1/2 sum z^2 over 677,376 numbers is beyond float16.
    flow = _flow.FlowSequence(4, 1, (1,))
    x = torch.randn(1, 4, 412, 412)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = flow(x.bfloat16())
        loss = _flow.negative_log_likelihood([z], [log_det])
        back, _ = flow.inverse(z.bfloat16())
    assert {z.dtype, log_det.dtype, loss.dtype, back.dtype} == {torch.float32}
    assert torch.isfinite(loss)
    torch.testing.assert_close(z, flow(x.bfloat16().float())[0])


def test_energy_is_half_the_mean_square() -> None:
    torch.manual_seed(0)
    assert _flow.energy(torch.randn(2, 3, 4, 5)).shape == (2, 1, 4, 5)
    assert float(_flow.energy(torch.randn(1, 100_000, 1, 1))) == pytest.approx(0.5, abs=0.01)


def test_a_kernel_of_another_size_is_refused() -> None:
    with pytest.raises(HrbenchError, match="kernel 5"):
        _flow.FlowStep(4, 5)
