"""Masked autoencoder: patches, masking, positions, checkpoints, sizes, and learning-rate schedules."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hrbench._util.fake_cuda import fake_cuda
from hrbench._util.resources import methods_package
from hrbench.errors import HrbenchError

methods_package()
from hrbench.methods._mae import (  # noqa: E402
    MaskedAutoencoder,
    masked_error,
    patchify,
    random_crops,
    random_order,
    sincos_positions,
    unpatchify,
)
from hrbench.methods._schedule import adamw, clip_gradients, cosine, fused, set_rate, wave  # noqa: E402

SMALL = {"width": 32, "heads": 4, "depth": 3}


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand((batch, 3, height, width), generator=torch.Generator().manual_seed(7))


def small(**options: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder("test_vit", "random", **{**SMALL, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_patches_are_cut_and_joined(batch: int, rows: int, columns: int, channels: int, patch: int) -> None:
    x = torch.randn(batch, channels, rows * patch, columns * patch)
    cut = patchify(x, patch)
    assert cut.shape == (batch, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(cut, (rows, columns), patch), x)
    last = cut[:, -1].reshape(batch, patch, patch, channels).permute(0, 3, 1, 2)
    assert torch.equal(last, x[:, :, -patch:, -patch:])


def test_three_quarters_are_hidden() -> None:
    torch.manual_seed(0)
    seen = []
    network = small()
    encode = network.encode
    network.encode = lambda x, keep: seen.append(keep) or encode(x, keep)
    _, hidden = network.paint(network.normalised(images(4, 224, 224)), mask_ratio=0.75, blocks=2)
    assert seen[0].shape == (4, 49)
    assert hidden.float().mean() == 0.75
    for row in range(4):
        assert not hidden[row, seen[0][row]].any()
    assert not torch.equal(hidden[0], hidden[1])


def test_random_order_and_its_inverse() -> None:
    order, restore = random_order(3, 50, torch.device("cpu"))
    assert torch.equal(order.gather(1, restore), torch.arange(50).expand(3, -1))


def test_the_decoder_gets_every_token_at_its_place() -> None:
    """Keeping all patches in a shuffled order and restoring it is the same as not masking."""
    network = small().eval()
    x = network.normalised(images())
    order, restore = random_order(2, 16, x.device)
    plain = network.decode(network.encode(x), (4, 4), blocks=3)[-1]
    shuffled = network.decode(network.encode(x, order), (4, 4), blocks=3, restore=restore)[-1]
    torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-5)


def test_only_hidden_patches_count() -> None:
    x, painted = images(), images(2).flip(0)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 3] = True
    before = masked_error(painted, x, hidden, 16)
    expected = (painted - x)[:, :, :16, 48:].square().mean()
    torch.testing.assert_close(before, expected)
    changed = x.clone()
    changed[:, :, 16:] = 5
    assert torch.equal(masked_error(painted, changed, hidden, 16), before)


def test_positions_are_sines_and_cosines_of_column_then_row() -> None:
    found = sincos_positions(16, (3, 5))
    assert found.shape == (1 + 15, 16)
    assert not found[0].any()
    row, column, k = 2, 4, 3
    frequency = 10000 ** (-k / 4)
    token = found[1 + row * 5 + column]
    wanted = [math.sin(column * frequency), math.cos(column * frequency)]
    wanted += [math.sin(row * frequency), math.cos(row * frequency)]
    torch.testing.assert_close(token[[k, 4 + k, 8 + k, 12 + k]], torch.tensor(wanted))


def test_positions_of_another_grid_lie_between_the_known() -> None:
    assert torch.equal(sincos_positions(16, (14, 14), (14, 14)), sincos_positions(16, (14, 14)))
    # Twice as many cells: each known cell's centre is in the middle of two new ones.
    fine, slowest = sincos_positions(16, (8, 8), (4, 4))[1:].reshape(8, 8, 16), 3
    columns = torch.asin(fine[0, :, slowest].double()) * 10000 ** (slowest / 4)
    torch.testing.assert_close(columns, torch.arange(8.0).double() / 2 - 0.25, rtol=0, atol=1e-4)
    for grid in ((1, 9), (20, 3)):
        assert sincos_positions(32, grid, (14, 14)).shape == (1 + grid[0] * grid[1], 32)


def test_any_multiple_of_the_patch_is_an_input() -> None:
    network = small().eval()
    for height, width in ((64, 64), (32, 80), (160, 160)):
        x = images(2, height, width)
        tokens = network.encode(network.normalised(x))
        assert tokens.shape == (2, 1 + height * width // 256, 64)
        assert network.pixels(network.decode(tokens, network.grid(x), blocks=3)[-1], network.grid(x)).shape == x.shape
    with pytest.raises(HrbenchError, match="input 60x64: height and width must be multiples of 16"):
        network.encode(images(1, 60, 64))


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder("vit_large_patch16_224.mae", "random")
    fixed = (1 + 196) * 1024
    assert count(network.encoder) + fixed == 303_301_632
    assert count(network.decoder.blocks[0]) == 3_152_384
    assert count(network) + fixed + (1 + 196) * 512 == 329_541_888
    with torch.device("meta"):
        base = MaskedAutoencoder("vit_base_patch16_224.mae", "random")
    assert count(base.encoder) + (1 + 196) * 768 == 85_798_656


def test_encoder_is_the_backbones() -> None:
    """With all patches and sine-cosine positions the encoder computes what timm's forward does."""
    network = small().eval()
    plain = timm.create_model("test_vit", num_classes=0).eval()
    with torch.no_grad():
        plain.load_state_dict({**network.encoder.state_dict(), "pos_embed": sincos_positions(64, (10, 10))[None]})
        x = network.normalised(images(2, 160, 160))
        torch.testing.assert_close(network.encode(x), plain.forward_features(x), rtol=1e-4, atol=1e-5)


def authors_checkpoint(depth: int, *, decoder: bool) -> dict[str, Tensor]:
    """Return random weights under the names of the authors' files."""
    torch.manual_seed(3)
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["pos_embed"] = sincos_positions(64, (10, 10))[None]
    if decoder:
        for k in range(depth):
            block = Block(32, 4, 4.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
            state |= {f"decoder_blocks.{k}.{key}": torch.randn_like(v) / 8 for key, v in block.state_dict().items()}
        state |= {"decoder_embed.weight": torch.randn(32, 64), "decoder_embed.bias": torch.randn(32)}
        state |= {"decoder_norm.weight": torch.randn(32), "decoder_norm.bias": torch.randn(32)}
        state |= {"decoder_pred.weight": torch.randn(768, 32), "decoder_pred.bias": torch.randn(768)}
        state |= {"mask_token": torch.randn(1, 1, 32), "decoder_pos_embed": torch.randn(1, 101, 32)}
    return state


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_checkpoints_with_a_decoder(tmp_path: Path, depth: int) -> None:
    state = authors_checkpoint(depth, decoder=True)
    torch.save({"model": state}, tmp_path / "mae.pth")
    torch.manual_seed(0)
    network = MaskedAutoencoder("test_vit", str(tmp_path / "mae.pth"), **SMALL).eval()
    used = min(depth, 3)
    assert network.origin.startswith("test_vit file:mae.pth sha256:")
    assert network.origin.endswith(f"with {used} decoder blocks")
    # The same decoder out of timm's blocks, from the same file.
    tokens, x = torch.randn(2, 17, 64), None
    with torch.no_grad():
        x = nn.functional.linear(tokens, state["decoder_embed.weight"], state["decoder_embed.bias"])
        x = x + sincos_positions(32, (4, 4), (10, 10))
        for k in range(used):
            block = Block(32, 4, 4.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
            prefix = f"decoder_blocks.{k}."
            block.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
            x = block(x)
        found = network.decode(tokens, (4, 4), blocks=used)[-1]
        torch.testing.assert_close(found, x[:, 1:], rtol=1e-4, atol=1e-4)
        normed = nn.functional.layer_norm(
            x[:, 1:], (32,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6
        )
        painted = nn.functional.linear(normed, state["decoder_pred.weight"], state["decoder_pred.bias"])
        torch.testing.assert_close(patchify(network.pixels(found, (4, 4)), 16), painted, rtol=1e-3, atol=1e-3)
    assert torch.equal(network.decoder.mask_token, state["mask_token"])
    fewer = MaskedAutoencoder("test_vit", str(tmp_path / "mae.pth"), **SMALL, given_depth=1)
    assert fewer.origin.endswith("with 1 decoder blocks")


def test_checkpoints_without_a_decoder(tmp_path: Path) -> None:
    state = authors_checkpoint(0, decoder=False)
    torch.save(state, tmp_path / "encoder.pth")
    network = MaskedAutoencoder("test_vit", str(tmp_path / "encoder.pth"), **SMALL)
    assert torch.equal(network.encoder.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])
    assert "decoder" not in network.origin


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"'test_vit2' differs in cls_token.*expected a plain ViT such as"):
        MaskedAutoencoder("test_vit2", "random", **SMALL)
    with pytest.raises(HrbenchError, match="decoder width 30"):
        small(width=30)
    state = authors_checkpoint(3, decoder=True)
    torch.save({**state, "decoder_pred.bias": torch.zeros(5)}, tmp_path / "a.pth")
    with pytest.raises(HrbenchError, match=r"a\.pth.*pixels\.bias is \(5,\), expected \(768,\)"):
        MaskedAutoencoder("test_vit", str(tmp_path / "a.pth"), **SMALL)
    torch.save({**state, "pos_embed": torch.randn(1, 101, 64)}, tmp_path / "b.pth")
    with pytest.raises(HrbenchError, match="not a masked autoencoder's: position embeddings"):
        MaskedAutoencoder("test_vit", str(tmp_path / "b.pth"), **SMALL)


def test_the_patch_can_be_chosen() -> None:
    network = small(patch=8)
    assert network.patch == 8
    assert network.encode(network.normalised(images())).shape == (2, 1 + 64, 64)


@pytest.mark.parametrize("patch", [8, 32])
@pytest.mark.parametrize("decoder", [False, True])
def test_given_weights_take_another_patch(tmp_path: Path, patch: int, decoder: bool) -> None:
    state = authors_checkpoint(3, decoder=decoder)
    torch.save({"model": state}, tmp_path / "mae.pth")
    own, other = (
        MaskedAutoencoder("test_vit", str(tmp_path / "mae.pth"), patch=p, **SMALL).eval() for p in (16, patch)
    )
    assert other.patch == patch
    x, resized = images(1, 160, 160), images(1, 10 * patch, 10 * patch)
    with torch.no_grad():
        # As many patches as the weights know, and hence their positions.
        filters = other.encoder.patch_embed.proj.weight
        torch.testing.assert_close(filters, resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch]))
        other.encoder.patch_embed.forward = lambda _: own.encoder.patch_embed(x)
        assert torch.equal(other.encode(resized), own.encode(x))
        del other.encoder.patch_embed.forward
        assert other.encode(x).shape == (1, 1 + (160 // patch) ** 2, 64)
    if decoder:
        assert torch.equal(other.decoder.mask_token, state["mask_token"])
        tokens = torch.randn(1, 1, 32)
        painted = nn.functional.interpolate(own.pixels(tokens, (1, 1)), patch, mode="bicubic", antialias=True)
        torch.testing.assert_close(other.pixels(tokens, (1, 1)), painted, rtol=1e-4, atol=1e-4)


def test_painting_is_learnt() -> None:
    """A few steps on one smooth picture beat painting its mean colour."""
    network = small()
    ramp = torch.linspace(0, 1, 64)
    picture = torch.stack((ramp.expand(64, 64), ramp[:, None].expand(64, 64), 0.5 * torch.ones(64, 64)))[None]
    x = network.normalised(picture).expand(4, -1, -1, -1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        painted, hidden = network.paint(x, mask_ratio=0.75, blocks=2)
        loss = masked_error(painted, x, hidden, 16)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2 * float(x.var(dim=(2, 3)).mean())


def test_random_crops() -> None:
    torch.manual_seed(0)
    x = images(16, 48, 64)
    found = random_crops(x, 0.2)
    assert found.shape == x.shape
    assert 0 <= found.min() <= found.max() <= 1
    mirrored = [bool(torch.equal(f, i.flip(-1))) for f, i in zip(random_crops(x, 1.0), x, strict=True)]
    assert 0 < sum(mirrored) < 16
    # A part of a ramp is a ramp: as steep as its share of the width.
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 48, 64)
    spans = random_crops(ramp, 0.2).abs().mean(dim=(1, 2)).diff(dim=-1).sum(-1).abs()
    assert spans.min() > 0.2**0.5 * 0.75**0.5 - 0.1
    assert spans.min() < 0.5
    assert spans.max() > 0.9


def test_rates_rise_and_fall() -> None:
    factors = [cosine(k, 305, warmup=40) for k in range(305)]
    assert factors[0] == 1 / 40
    assert factors[39] == factors[40] == 1  # 1e-3 * 20 / 256 = 7.8125e-5 with the paper's rate
    assert factors[40 + 265 // 2] == pytest.approx(0.5, abs=0.01)
    assert 0 < factors[-1] < 1e-4
    assert cosine(100, 100, least=0.01) == pytest.approx(0.01)
    waves = [1e-3 * wave(k * 7 + k % 7, 7, period=30, least=1e-3) for k in range(200)]
    assert [waves[k] for k in (0, 30, 60, 90, 150)] == pytest.approx([1e-3, 1e-6, 1e-3, 1e-6, 1e-6])
    assert waves[199] == pytest.approx(2.973e-4, rel=1e-3)  # ISSTAD's at the end of its 200 epochs


def steps_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, number: int) -> list[float]:
    rates = []
    for _ in range(number):
        parameter.grad = torch.full_like(parameter, 3.0)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_a_continued_schedule_is_the_same() -> None:
    def fresh() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.ones(2, 2))
        optimizer = adamw([parameter], 0.1)
        set_rate(optimizer, 10, warmup=3, least=0.1)
        return parameter, optimizer

    parameter, optimizer = fresh()
    whole = steps_of(optimizer, parameter, 10)
    assert whole == [0.1 * cosine(k, 10, warmup=3, least=0.1) for k in range(10)]
    first, one = fresh()
    part = steps_of(one, first, 4)
    second, two = fresh()
    with torch.no_grad():
        second.copy_(first)
    two.load_state_dict(one.state_dict())
    assert part + steps_of(two, second, 6) == whole
    assert torch.equal(second, parameter)


def test_on_a_gpu_optimizers_do_their_step_in_one_kernel_and_count_without_a_wait() -> None:
    assert fused(torch.device("cpu")) is None
    with fake_cuda() as log:
        parameter = nn.Parameter(torch.ones(4).to("cuda", non_blocking=True))
        optimizer = torch.optim.Adam([parameter], 0.1, fused=fused(parameter.device))
        set_rate(optimizer, 10, warmup=3)
        rates = steps_of(optimizer, parameter, 10)
        assert optimizer.state[parameter]["step"].is_cuda
        assert not log.waits
    assert rates == [0.1 * cosine(k, 10, warmup=3) for k in range(10)]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_one_kernel_differs_by_rounding(kind: type[torch.optim.Optimizer]) -> None:
    ends = []
    for in_one in (None, True):  # the kernel of the CPU: that of a GPU needs one
        parameter = nn.Parameter(torch.linspace(-1, 1, 100))
        optimizer = kind([parameter], lr=0.01, weight_decay=1e-2, fused=in_one)  # type: ignore[call-arg]
        for _ in range(50):
            optimizer.zero_grad()
            (parameter - 0.3).square().sum().backward()
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    clip_gradients(optimizer, 1.0)
    steps_of(optimizer, parameter, 1)
    torch.testing.assert_close(parameter.detach(), torch.full((4,), -0.5))


def test_weight_decay_spares_biases_and_norms() -> None:
    network = small()
    decayed, spared = adamw(network.parameters(), 1e-3).param_groups
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))
