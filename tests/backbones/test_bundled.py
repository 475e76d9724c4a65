"""Bundled backbones: there without a network, small, described, and what the record says they are."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import safetensors
import torch

from hrbench.backbones import bundled as _bundled
from hrbench.backbones import bundled_models, level_indices, load_pyramid, load_tokens, token_depth
from hrbench.demo import METHODS
from hrbench.errors import HrbenchError
from hrbench.registry import create_method, load_method
from hrbench.runs.job import identities

LIMITS = {"resnet18": 8e6, "vit_tiny_patch16_224": 12e6}  # bytes
FOLDER = Path(_bundled.__file__).parents[1] / "weights"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HRBENCH_WEIGHTS", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def header(model: str) -> dict[str, str]:
    with safetensors.safe_open(FOLDER / f"{model}.safetensors", framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_both_are_there_and_nothing_else() -> None:
    assert bundled_models() == sorted(LIMITS)


@pytest.mark.parametrize("model", sorted(LIMITS))
def test_files_are_small(model: str) -> None:
    assert (FOLDER / f"{model}.safetensors").stat().st_size <= LIMITS[model]


@pytest.mark.parametrize("model", sorted(LIMITS))
def test_the_header_says_how_it_was_made(model: str) -> None:
    found = header(model)
    assert found["model"] == model
    assert found["licence"] == "Apache-2.0"
    assert "no photographs" in found["images"]
    recipe = json.loads(found["recipe"])
    assert (str(recipe["seed"]), str(recipe["steps"])) == (found["seed"], found["steps"])
    assert recipe["steps"] >= 100, "a smoke run's weights were bundled"
    assert recipe["canvases"] >= 100
    assert int(found["formulas_version"]) >= 1
    assert len(found["canvases_sha256"]) == 16


def test_the_transformer_was_taught_by_the_trunk() -> None:
    (digest,) = re.findall(r"distillation of resnet18 \S+ (sha256:\w+) ", header("vit_tiny_patch16_224")["made_by"])
    assert load_pyramid("resnet18", "bundled", (1, 2, 3)).provenance == f"resnet18 bundled {digest}"


def test_the_trunk_loads_with_its_own_normalisation() -> None:
    pyramid = load_pyramid("resnet18", "bundled", level_indices("resnet18", (4, 8, 16)))
    found = header("resnet18")
    assert pyramid.mean.flatten().tolist() == pytest.approx(json.loads(found["mean"]))
    assert pyramid.std.flatten().tolist() == pytest.approx(json.loads(found["std"]))
    assert pyramid.provenance.startswith("resnet18 bundled sha256:")
    assert not any(p.requires_grad for p in pyramid.parameters())
    assert all(p.dtype == torch.float32 for p in pyramid.parameters())
    maps = pyramid(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert [m.shape[1:] for m in maps] == [(64, 16, 24), (128, 8, 12), (256, 4, 6)]
    assert all(m.isfinite().all() and m.std() > 0.01 for m in maps)


def test_the_transformer_loads_with_its_own_depth() -> None:
    depth = token_depth("vit_tiny_patch16_224", "bundled")
    assert depth == json.loads(header("vit_tiny_patch16_224")["options"])["depth"] < token_depth("vit_tiny_patch16_224")
    tokens = load_tokens("vit_tiny_patch16_224", "bundled", (depth - 1,))
    assert tokens.provenance.startswith("vit_tiny_patch16_224 bundled sha256:")
    for size in ((224, 224), (64, 96)):  # not only the size of its position embeddings
        (found,) = tokens(torch.rand(1, 3, *size))
        assert found.shape == (1, size[0] * size[1] // 256, 192)
        assert found.isfinite().all()
    with pytest.raises(HrbenchError, match=f"expected ascending numbers from 0 to {depth - 1}"):
        load_tokens("vit_tiny_patch16_224", "bundled", (depth,))


def test_a_tag_names_other_weights_and_is_left_out_of_the_provenance() -> None:
    tagged = load_pyramid("resnet18.tv_in1k", "bundled", (1,))
    assert tagged.provenance == load_pyramid("resnet18", "bundled", (1,)).provenance


def test_the_random_state_is_not_the_weights() -> None:
    def map_of(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_pyramid("resnet18", "bundled", (1,))(torch.ones(1, 3, 64, 64))[0]

    assert torch.equal(map_of(0), map_of(1))


@pytest.mark.parametrize(
    "load", [lambda m: load_pyramid(m, "bundled", (1,)), lambda m: load_tokens(m, "bundled", (1,))]
)
def test_a_model_without_bundled_weights_lists_those_that_have(load) -> None:
    with pytest.raises(
        HrbenchError, match="no bundled weights for test_vit, expected one of: resnet18, vit_tiny_patch16_224"
    ):
        load("test_vit")


def test_a_level_that_is_not_bundled_is_named() -> None:
    with pytest.raises(
        HrbenchError, match=r"the bundled resnet18 lacks what was asked for \(no layer4.*expected strides up to 16"
    ):
        load_pyramid("resnet18", "bundled", (4,))


def test_an_installation_without_weights_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    with pytest.raises(HrbenchError, match="lacks hrbench/weights"):
        load_pyramid("resnet18", "bundled", (1,))


@pytest.mark.parametrize("method", METHODS)
def test_demo_presets_use_them_and_record_it(method: str) -> None:
    record = create_method(method, preset="demo").weights_record()
    assert record
    assert all(" bundled sha256:" in source for source in record.values())


def test_a_run_is_another_one_when_its_bundled_file_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"backbone": "resnet18.tv_in1k", "weights": "bundled", "steps": 3}
    for name in ("resnet18", "vit_tiny_patch16_224"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"first")
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    before = identities(load_method("fastflow"), options)
    assert before["weights"].startswith("bundled sha256:")
    assert before == {**options, "weights": before["weights"]}
    (tmp_path / "vit_tiny_patch16_224.safetensors").write_bytes(b"another release")
    assert identities(load_method("fastflow"), options) == before
    (tmp_path / "resnet18.safetensors").write_bytes(b"another release")
    assert identities(load_method("fastflow"), options) != before


def test_a_method_whose_backbone_is_no_option_counts_all_bundled_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    seen = set()
    for content in (b"first", b"another release"):
        (tmp_path / "resnet18.safetensors").write_bytes(content)
        seen.add(identities(load_method("fastflow"), {"weights": "bundled"})["weights"])
    assert len(seen) == 2
