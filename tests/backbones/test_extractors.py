"""Backbones: frozen, normalised, at any size; weights are found, checked and named, or the error says how."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from hrbench.backbones import level_indices, load_pyramid, load_tokens, token_depth, weights_folder
from hrbench.errors import HrbenchError

PYRAMID = "test_resnet"
VIT = "test_vit"  # 6 blocks, width 64, patch 16, 160 px


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty weights folder, empty caches, and a hub that cannot be reached."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError("the network is unreachable\nand more lines")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HRBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **o: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def state_of(model: str, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    network: nn.Module = timm.create_model(model)
    return network.state_dict()


def test_pyramid_shapes_strides_and_channels() -> None:
    pyramid = load_pyramid("resnet18.tv_in1k", "random", level_indices("resnet18.tv_in1k", (4, 8, 16)))
    assert pyramid.channels == (64, 128, 256)
    assert pyramid.strides == (4, 8, 16)
    assert pyramid.provenance == "resnet18.tv_in1k random"
    shapes = [tuple(m.shape) for m in pyramid(torch.rand(2, 3, 64, 96))]
    assert shapes == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]


def test_pyramid_is_channels_first_whatever_the_model_says() -> None:
    pyramid = load_pyramid("swin_tiny_patch4_window7_224", "random", (0,))
    assert pyramid(torch.rand(1, 3, 224, 224))[0].shape == (1, 96, 56, 56)


def test_inputs_are_normalised_inside() -> None:
    pyramid = load_pyramid("resnet18", "random", (1,))
    images = torch.rand(1, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.equal(pyramid(images)[0], pyramid.network((images - mean) / std)[0])


def test_normalisation_is_the_models_own() -> None:
    tokens = load_tokens("vit_tiny_patch16_224.augreg_in21k", "random", (0,))
    assert tokens.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "make", [lambda: load_pyramid(PYRAMID, "random", (1,)), lambda: load_tokens(VIT, "random", (1,))]
)
def test_stays_frozen(make) -> None:
    backbone = make()
    outer = nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(p.requires_grad for p in outer.parameters())
    images = torch.rand(2, 3, 160, 160, requires_grad=True)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert not any(found.requires_grad for found in backbone(images))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_levels_are_found_by_stride() -> None:
    assert level_indices("mobilenetv2_100", (4, 8, 16)) == (1, 2, 3)
    assert level_indices("convnext_atto", (4, 16)) == (0, 2)
    with pytest.raises(HrbenchError, match=r"no features at stride 3; it has \[2, 4, 8, 16, 32\]"):
        level_indices("resnet18", (3,))


def test_tokens_are_those_of_the_whole_model() -> None:
    torch.manual_seed(0)
    tokens = load_tokens(VIT, "random", (3, 5))
    torch.manual_seed(0)
    whole = timm.create_model(VIT, num_classes=0, dynamic_img_size=True).eval()
    images = torch.rand(2, 3, 160, 160)
    middle, last = tokens(images)
    expected = whole.forward_features((images - tokens.mean) / tokens.std)[:, whole.num_prefix_tokens :]
    torch.testing.assert_close(last, expected)
    assert middle.shape == last.shape == (2, 100, 64)
    assert (middle - last).abs().max() > 0.1


def test_blocks_after_the_last_are_dropped() -> None:
    tokens = load_tokens(VIT, "random", (1,))
    assert len(tokens.network.blocks) == 2
    assert not any("head" in key for key in tokens.state_dict())


def test_tokens_without_norm() -> None:
    torch.manual_seed(0)
    plain = load_tokens(VIT, "random", (2,), norm=False)
    torch.manual_seed(0)
    normed = load_tokens(VIT, "random", (2,))
    images = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(normed(images)[0], normed.network.norm(plain(images)[0]))


@pytest.mark.parametrize(
    ("model", "size", "grid"),
    [
        (VIT, (160, 160), (10, 10)),
        (VIT, (96, 224), (6, 14)),
        ("deit_tiny_distilled_patch16_224", (48, 80), (3, 5)),
        ("cait_xxs24_224", (48, 80), (3, 5)),
    ],
)
def test_any_multiple_of_the_patch(model: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    tokens = load_tokens(model, "random", (1,))
    images = torch.rand(2, 3, *size)
    (found,) = tokens(images)
    assert tokens.grid(images) == grid
    assert found.shape == (2, grid[0] * grid[1], tokens.width)
    torch.testing.assert_close(tokens(images[1:])[0], found[1:], rtol=1e-4, atol=1e-5)


def test_other_sizes_are_refused() -> None:
    tokens = load_tokens(VIT, "random", (1,))
    with pytest.raises(HrbenchError, match="input 100x160: height and width must be multiples of 16"):
        tokens(torch.rand(1, 3, 100, 160))


def test_distilled_tokens_drop_both_prefix_tokens() -> None:
    torch.manual_seed(0)
    tokens = load_tokens("deit_tiny_distilled_patch16_224", "random", (1,))
    net = tokens.network
    images = torch.rand(1, 3, 224, 224)
    x = net.patch_embed((images - tokens.mean) / tokens.std).flatten(1, 2)
    x = torch.cat((net.cls_token, net.dist_token, x), dim=1) + net.pos_embed
    expected = net.norm(net.blocks(x))[:, 2:]
    torch.testing.assert_close(tokens(images)[0], expected)


def test_cait_uses_patch_tokens_only() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("cait_xxs24_224", num_classes=0).eval()
    torch.manual_seed(0)
    tokens = load_tokens("cait_xxs24_224", "random", (0, 2))
    images = torch.rand(1, 3, 224, 224)
    expected = whole.forward_intermediates(
        (images - tokens.mean) / tokens.std, indices=[0, 2], norm=True, output_fmt="NLC", intermediates_only=True
    )
    for found, wanted in zip(tokens(images), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert tokens.network.blocks_token_only is None


def test_depth_counts_blocks() -> None:
    assert token_depth(VIT) == 6
    assert token_depth("cait_xxs24_224") == 24


@pytest.mark.parametrize("blocks", [(), (6,), (3, 1), (1, 1), (-1,)])
def test_wrong_blocks(blocks: tuple[int, ...]) -> None:
    with pytest.raises(HrbenchError, match="expected ascending numbers from 0 to 5"):
        load_tokens(VIT, "random", blocks)


def test_unknown_models() -> None:
    with pytest.raises(HrbenchError, match=r"unknown timm model 'resnet81'; did you mean .*resnet18"):
        load_pyramid("resnet81", "random", (1,))
    with pytest.raises(HrbenchError, match="Invalid pretrained tag"):
        load_pyramid("resnet18.nobody", "random", (1,))
    with pytest.raises(HrbenchError, match=r"not a vision transformer|gives no patch tokens"):
        load_tokens("resnet18", "random", (1,))


def test_random_weights_follow_the_seed() -> None:
    def make(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return load_pyramid(PYRAMID, "random", (1,))(torch.ones(1, 3, 64, 64))[0]

    assert torch.equal(make(0), make(0))
    assert not torch.equal(make(0), make(1))


@pytest.mark.parametrize("form", ["plain.pth", "wrapped.pt", "model.pth", "plain.safetensors"])
def test_files_of_every_form_give_the_same_network(tmp_path: Path, form: str) -> None:
    state = state_of(PYRAMID)
    path = tmp_path / form
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        wrapper = {"wrapped": "state_dict", "model": "model"}.get(path.stem)
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    pyramid = load_pyramid(PYRAMID, str(path), (1, 2))
    own = pyramid.network.state_dict()
    assert torch.equal(own["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    assert pyramid.provenance.startswith(f"{PYRAMID} file:{form} sha256:")
    assert len(pyramid.provenance.rpartition(":")[2]) == 16
    # The digest is of the weights, not of the file.
    torch.save(state, tmp_path / "other.pth")
    other = load_pyramid(PYRAMID, str(tmp_path / "other.pth"), (1, 2))
    assert other.provenance.rpartition(":")[2] == pyramid.provenance.rpartition(":")[2]


@pytest.mark.parametrize("model", ["mobilenetv2_050", "test_convnext", "test_vit", "mobilenetv1_100"])
def test_features_only_renames_are_undone(tmp_path: Path, model: str) -> None:
    state = state_of(model)
    torch.save(state, tmp_path / "w.pth")
    pyramid = load_pyramid(model, str(tmp_path / "w.pth"), (0,))
    values = {(tuple(v.shape), float(v.double().sum())) for v in state.values()}
    own = [v for v in pyramid.network.state_dict().values() if v.numel() > 1]
    assert len(own) > 3
    assert all((tuple(v.shape), float(v.double().sum())) in values for v in own)


def test_token_file(tmp_path: Path) -> None:
    state = state_of("cait_xxs24_224")
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    tokens = load_tokens("cait_xxs24_224", str(tmp_path / "w.pth"), (2,))
    assert torch.equal(tokens.network.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])


def test_files_with_the_authors_names_are_converted(tmp_path: Path) -> None:
    # DINOv2's own file: other names for register tokens, a mask token, position embeddings without prefix.
    model = "vit_small_patch14_reg4_dinov2"
    state = state_of(model)
    theirs = {k: v for k, v in state.items() if k not in ("reg_token", "pos_embed", "cls_token")}
    theirs["register_tokens"] = state["reg_token"]
    theirs["cls_token"] = state["cls_token"]
    theirs["mask_token"] = torch.zeros(1, 384)
    theirs["pos_embed"] = torch.cat((torch.zeros(1, 1, 384), state["pos_embed"]), dim=1)
    torch.save(theirs, tmp_path / "w.pth")
    tokens = load_tokens(model, str(tmp_path / "w.pth"), (0,))
    assert torch.equal(tokens.network.reg_token, state["reg_token"])
    assert torch.equal(tokens.network.pos_embed, state["pos_embed"])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match="no such file, and neither 'pretrained', 'bundled' nor 'random'"):
        load_pyramid(PYRAMID, str(tmp_path / "absent.pth"), (1,))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(HrbenchError, match=r"broken.pth': not a readable state dict"):
        load_pyramid(PYRAMID, str(tmp_path / "broken.pth"), (1,))
    (tmp_path / "broken.safetensors").write_bytes(b"\x01")
    with pytest.raises(HrbenchError, match=r"broken.safetensors': not a readable state dict"):
        load_pyramid(PYRAMID, str(tmp_path / "broken.safetensors"), (1,))
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(HrbenchError, match=r"weights.npz': expected a file ending in"):
        load_pyramid(PYRAMID, str(tmp_path / "weights.npz"), (1,))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(HrbenchError, match=r"list.pth': holds no state dict"):
        load_pyramid(PYRAMID, str(tmp_path / "list.pth"), (1,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"a": Path("x")}, path)  # an object, harmless here
    with pytest.raises(HrbenchError, match=r"evil.pth': not a readable state dict: .* never read") as refused:
        load_pyramid(PYRAMID, str(path), (1,))
    assert "weights_only" not in str(refused.value)  # torch's advice is to unpickle
    assert "safetensors" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "layer1.7.conv1.weight": torch.ones(2)}, f"{PYRAMID} has no layer1.7.conv1.weight"),
        (lambda state: {**state, "projector.bias": torch.ones(2)}, f"{PYRAMID} has no projector.bias"),
        (lambda state: {**state, "reg_token": torch.ones(2)}, f"{PYRAMID} has no reg_token"),
        (lambda state: {**state, "conv1.0.weight": state["conv1.0.weight"] + 0j}, "of type complex64, expected float"),
        (lambda state: {**state, "conv1.0.weight": state["conv1.0.weight"].to(torch.int8)}, "int8, expected float32"),
        (lambda state: {**state, "conv1.0.weight": state["conv1.0.weight"] / 0}, "conv1.0.weight holds .* infinite"),
    ],
)
def test_weights_of_another_model_or_type_do_not_fit(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(change(state_of(PYRAMID)), path)
    with pytest.raises(HrbenchError, match=rf"w.pth' do not fit {PYRAMID}: .*{message}"):
        load_pyramid(PYRAMID, str(path), (1,))


def test_parts_beside_the_model_are_left_out(tmp_path: Path) -> None:
    path, state = tmp_path / "w.pth", state_of(VIT)
    torch.save(state, path)
    plain = load_tokens(VIT, str(path), (3,)).provenance
    beside = {"decoder_pos_embed": torch.ones(2), "mask_token": torch.ones(2), "decoder_norm.bias": torch.ones(2)}
    torch.save({**state, **beside}, path)
    assert load_tokens(VIT, str(path), (3,)).provenance == plain


def test_misfits_name_file_model_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state_of(VIT), path)
    with pytest.raises(HrbenchError, match=rf"w.pth' do not fit {PYRAMID}: no conv1.*; and \d+ more"):
        load_pyramid(PYRAMID, str(path), (1,))
    state = state_of(PYRAMID)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:, :1]
    torch.save(state, path)
    with pytest.raises(HrbenchError, match=r"layer1.0.conv1.weight is \(\d+, 1, 3, 3\), expected \("):
        load_pyramid(PYRAMID, str(path), (1,))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_pretrained_is_first_looked_for_in_the_weights_folder(tmp_path: Path, suffix: str) -> None:
    state = state_of(PYRAMID)
    path = tmp_path / "weights" / f"{PYRAMID}.r160_in1k{suffix}"
    path.parent.mkdir()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    pyramid = load_pyramid(f"{PYRAMID}.r160_in1k", "pretrained", (1,))
    assert pyramid.provenance.startswith(f"{PYRAMID}.r160_in1k file:{path.name} sha256:")


def test_pretrained_comes_from_the_hubs_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state_of(PYRAMID), path)
    asked = []

    def cached(repo: str, name: str, **options: object) -> str:
        asked.append((repo, name))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    pyramid = load_pyramid(f"{PYRAMID}.r160_in1k", "pretrained", (1,))
    assert asked == [(f"timm/{PYRAMID}.r160_in1k", "model.safetensors")]
    assert pyramid.provenance.startswith(f"{PYRAMID}.r160_in1k hub sha256:")


def test_pretrained_is_downloaded_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state_of(PYRAMID), path)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **o: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **o: str(path))
    assert " hub sha256:" in load_pyramid(f"{PYRAMID}.r160_in1k", "pretrained", (1,)).provenance


def test_pretrained_from_torch_hubs_cache(tmp_path: Path) -> None:
    path = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save(state_of("resnet18"), path)
    assert " hub sha256:" in load_pyramid("resnet18.tv_in1k", "pretrained", (1,)).provenance


def test_without_weights_one_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HrbenchError) as caught:
        load_pyramid("resnet18.tv_in1k", "pretrained", (1,))
    text = str(caught.value)
    for part in (
        "resnet18.tv_in1k (the network is unreachable)",
        "model.safetensors of https://huggingface.co/timm/resnet18.tv_in1k",
        "resnet18-f37072fd.pth",
        str(tmp_path / "weights" / "resnet18.tv_in1k.safetensors"),
        "HRBENCH_WEIGHTS",
        "weights=random",
    ):
        assert part in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(HrbenchError, match="timm knows no pretrained weights for it"):
        load_pyramid("mobilenetv2_075", "pretrained", (1,))


def test_weights_folder_defaults_to_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HRBENCH_WEIGHTS")
    assert weights_folder() == Path.home() / ".cache" / "hrbench" / "weights"


@pytest.mark.parametrize("model", ["resnet10t", "test_convnext"])
def test_the_layout_of_memory_changes_nothing_but_rounding(model):
    pyramid = load_pyramid(model, "random", (0, 1))
    images = torch.rand(2, 3, 64, 96)
    found = pyramid(images)
    pyramid.network.to(memory_format=torch.contiguous_format)
    plain = pyramid.network((images - pyramid.mean) / pyramid.std)
    for own, other in zip(found, plain, strict=True):
        assert own.is_contiguous()
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
