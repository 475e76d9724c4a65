"""FastFlow: shapes, map formulas, training, determinism, and saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import PlainContext, noise_normals
from PIL import Image
from torch import Tensor

from hrbench._util.resources import methods_package
from hrbench.data.sample import Sample
from hrbench.engine.inference import predict
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.method import Method
from hrbench.registry import create_method

methods_package()
from hrbench.methods._flow import fuse  # noqa: E402
from hrbench.methods.fastflow import FastFlow  # noqa: E402

SMALL = {"backbone": "test_resnet", "weights": "random", "flow_steps": 2, "batch_size": 4, "steps": 6}


def fitted(**options: object) -> tuple[Method, PlainContext]:
    torch.manual_seed(0)
    method = create_method("fastflow", **{**SMALL, **options})
    context = PlainContext()
    method.fit(noise_normals(24), context)
    return method.eval(), context


@torch.no_grad()
def map_of(method: Method, batch: Tensor) -> Tensor:
    (found,) = method.predict(batch).maps.values()
    return found


def batch(size: tuple[int, int] = (64, 64), n: int = 3) -> Tensor:
    return torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("preset", "flows", "norms", "multiple"),
    [
        ("paper", 4_657_408, 917_504, 16),
        ("paper-wrn50", 41_337_856, 3_670_016, 16),
        ("paper-deit", 7_074_500, 0, 16),
        ("paper-cait", 7_074_500, 0, 16),
        ("native", 4_657_408, 0, 16),
    ],
)
def test_presets_have_the_published_size(preset: str, flows: int, norms: int, multiple: int) -> None:
    with torch.device("meta"):
        method = create_method("fastflow", preset=preset, weights="random")
    assert isinstance(method, FastFlow)
    assert sum(p.numel() for p in method.flows.parameters()) == flows
    assert sum(p.numel() for p in method.norms.parameters()) == norms
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == flows + norms
    assert method.multiple == multiple


def test_paper_backbones() -> None:
    with torch.device("meta"):
        made = {p: create_method("fastflow", preset=p, weights="random") for p in ("paper-deit", "paper-cait")}
    assert {p: m.backbone.blocks for p, m in made.items()} == {"paper-deit": (7,), "paper-cait": (40,)}
    assert [len(m.backbone.network.blocks) for m in made.values()] == [8, 41]


@pytest.mark.parametrize("norm", ["layer-affine", "layer", "channel", "none"])
@pytest.mark.parametrize("map_", ["energy", "likelihood"])
def test_fit_and_predict(norm: str, map_: str) -> None:
    method, context = fitted(norm=norm, map=map_, input_size=64 if norm == "layer-affine" else None)
    assert context.losses[-1] < context.losses[0]
    found = map_of(method, batch())
    assert found.shape == ((3, 16, 16) if map_ == "energy" else (3, 64, 64))  # the paper's, at the input's size
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.std() > 0


def test_tokens_as_features() -> None:
    method, context = fitted(backbone="test_vit", block=2, norm="none")
    assert method.multiple == 16
    assert context.losses[-1] < context.losses[0]
    assert map_of(method, batch((64, 96))).shape == (3, 4, 6)


def test_token_features_keep_their_place() -> None:
    torch.manual_seed(0)
    method = create_method("fastflow", **{**SMALL, "backbone": "test_vit", "block": 0, "norm": "none"})
    images = batch((64, 96), n=1)
    (features,) = method.features(images)
    (tokens,) = method.backbone(images)
    assert torch.equal(features[0, :, 1, 2], tokens[0, 1 * 6 + 2])


@pytest.mark.parametrize("size", [(16, 16), (48, 112), (80, 64)])
def test_any_multiple_of_the_stride(size: tuple[int, int]) -> None:
    method, _ = fitted()
    assert map_of(method, batch(size)).shape == (3, size[0] // 4, size[1] // 4)


def test_an_affine_layer_norm_refuses_other_sizes() -> None:
    method, _ = fitted(norm="layer-affine", input_size=64)
    assert method.input_size == 64
    with pytest.raises(HrbenchError, match="features are 16x24, expected 16x16"):
        method.predict(batch((64, 96)))
    assert fitted(norm="layer", input_size=64)[0].input_size is None


def test_images_of_a_batch_do_not_mix() -> None:
    method, _ = fitted()
    together = map_of(method, batch())
    torch.testing.assert_close(map_of(method, batch()[1:2]), together[1:2], rtol=1e-4, atol=1e-5)


def test_equal_seeds_give_equal_bits() -> None:
    assert torch.equal(map_of(fitted()[0], batch()), map_of(fitted()[0], batch()))


def test_saved_and_loaded_predicts_the_same_bits(tmp_path: Path) -> None:
    method, _ = fitted()
    torch.save(method.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(5)
    other = create_method("fastflow", **SMALL).eval()
    assert not torch.equal(map_of(other, batch()), map_of(method, batch()))
    other.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))
    assert torch.equal(map_of(other, batch()), map_of(method, batch()))


def test_only_flows_and_norms_learn() -> None:
    torch.manual_seed(0)
    method = create_method("fastflow", **{**SMALL, "norm": "layer-affine", "input_size": 64}).train()
    method.loss(method.features(batch())).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name
    assert not method.backbone.network.training


def test_channel_norm_measures_the_features_of_normals() -> None:
    method, _ = fitted(strides=(4,), batch_size=24, steps=1)
    # The moments come from one batch of 24; the same batch is standardised by them.
    chosen = next(noise_normals(24).batches(24, steps=1, seed=0))
    x = method.norms[0](method.features(chosen)[0])
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    # A channel that hardly varies is left below one: its std is floored at a share of the mean std.
    live = method.norms[0].std.flatten() > 0.051 * method.norms[0].std.mean()
    assert live.sum() > 1
    torch.testing.assert_close(std[live], torch.ones_like(std[live]), atol=1e-3, rtol=0)


def test_channel_norm_is_local_and_layer_norm_is_not() -> None:
    changed = batch((160, 160), n=1)
    changed[..., 112:, 112:] = 1
    for norm, local in (("channel", True), ("layer", False)):
        method, _ = fitted(norm=norm, strides=(4,), kernels=(1,))
        before, after = map_of(method, batch((160, 160), n=1)), map_of(method, changed)
        # test_resnet sees 43 px at stride 4, so the first 64 px know nothing of the change.
        far = (before - after)[0, :16, :16].abs().max()
        assert bool(far < 1e-4) == local


def test_epochs_become_steps_without_the_last_incomplete_batch() -> None:
    _, context = fitted(steps=None, epochs=3, batch_size=10)
    assert context.steps == 3 * 2
    _, context = fitted(steps=None, epochs=3, batch_size=100)
    assert context.steps == 3


def test_map_values() -> None:
    zero, huge = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 1e4)
    noise = 0.5 * torch.randn(2, 100_000, 2, 2).square().mean(dim=1, keepdim=True)
    assert (fuse([zero], "likelihood") == -1).all()
    assert (fuse([huge], "likelihood") == 0).all()
    torch.testing.assert_close(fuse([noise], "likelihood"), torch.full((2, 2, 2), -0.6065), atol=5e-3, rtol=0)
    assert (fuse([huge, 2 * huge], "energy") == 1.5e4).all()
    assert fuse([zero[:1]], "energy").shape == (1, 4, 4)


@pytest.mark.parametrize("kind", ["energy", "likelihood"])
def test_maps_grow_with_the_energy(kind: str) -> None:
    energies = torch.linspace(0, 5, 16).view(1, 1, 4, 4)
    assert (fuse([energies], kind).flatten().diff() > 0).all()


def test_the_paper_interpolates_probabilities_not_energies() -> None:
    fine, coarse = torch.zeros(1, 1, 2, 4), torch.tensor([[[[0.0, 10.0]]]])
    found = fuse([fine, coarse], "likelihood")[0, 0]
    p = torch.tensor([1.0, 0.75, 0.25, 0.0])
    torch.testing.assert_close(found, -(1 + p) / 2, atol=1e-4, rtol=0)


def test_energy_does_not_saturate_where_likelihood_does() -> None:
    strong = torch.tensor([500.0, 1000.0]).view(1, 1, 1, 2)
    assert fuse([strong], "likelihood").diff().item() == 0
    assert fuse([strong], "energy").diff().item() == 500


def test_mistakes_are_named() -> None:
    with pytest.raises(HrbenchError, match="option map of fastflow is 'prob', expected one of"):
        create_method("fastflow", **SMALL, map="prob")
    with pytest.raises(HrbenchError, match="steps or epochs, one of them; got 6 and 2"):
        create_method("fastflow", **SMALL, epochs=2)
    with pytest.raises(HrbenchError, match="input_size 250 of fastflow: expected a multiple of 16"):
        create_method("fastflow", **SMALL, input_size=250)
    with pytest.raises(HrbenchError, match="no features at stride 5"):
        create_method("fastflow", **SMALL, strides=(5,))
    with pytest.raises(HrbenchError, match="needs input_size"):
        create_method("fastflow", **SMALL, norm="layer-affine")


def test_an_image_of_one_tile_is_the_whole_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray((255 * batch(n=1)[0].permute(1, 2, 0).numpy()).astype(np.uint8)).save(path)
    sample = Sample("a.png", path, None, 0, "good", "test", "x")
    method, _ = fitted()
    tiled, whole = (
        next(iter(predict(method, [sample], View.parse(view), torch.device("cpu")))).maps["anomaly"]
        for view in ("tiled:64:16", "whole:64")
    )
    assert torch.equal(tiled, whole)
    # A tile on its own sees what it sees as a part: constant features stay constant where nothing is padded.
    flat = map_of(method, torch.full((1, 3, 256, 256), 0.5))[0, 24:-24, 24:-24]
    torch.testing.assert_close(flat, flat[:1, :1].expand_as(flat), rtol=1e-4, atol=1e-5)
