"""Bundled backbones: there without a network, small, described, and what the record says they are."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import safetensors
import torch

from hrbench import _bundled
from hrbench.backbones import bundled_models, level_indices, load_pyramid, load_tokens, token_depth
from hrbench.benchmark import _identities
from hrbench.commands import DEMO_METHODS
from hrbench.errors import HrbenchError
from hrbench.method import create_method

VIT = "vit_tiny_patch16_224"
LIMITS = {"resnet18": 8e6, "resnet18-uncrowded": 8e6, VIT: 12e6}  # bytes
FOLDER = Path(_bundled.__file__).parent / "weights"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("HRBENCH_WEIGHTS", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


def header(name: str) -> dict[str, str]:
    with safetensors.safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_these_are_there_and_nothing_else() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(LIMITS)
    assert bundled_models() == ["resnet18", VIT]


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_files_are_small(name: str) -> None:
    assert (FOLDER / f"{name}.safetensors").stat().st_size <= LIMITS[name]


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_header_says_how_it_was_made(name: str) -> None:
    found = header(name)
    assert found["model"] == name.partition("-")[0]
    assert found["licence"] == "Apache-2.0"
    assert "no photographs" in found["images"]
    recipe = json.loads(found["recipe"])
    assert (str(recipe["seed"]), str(recipe["steps"])) == (found["seed"], found["steps"])
    assert recipe["steps"] >= 100, "a smoke run's weights were bundled"
    assert recipe["canvases"] >= 100
    assert int(found["formulas_version"]) >= 1
    assert len(found["canvases_sha256"]) == 16


def test_the_transformer_was_taught_by_the_uncrowded_trunk() -> None:
    (digest,) = re.findall(r"distillation of resnet18 \S+ (sha256:[0-9a-f]{16}) ", header(VIT)["made_by"])
    assert load_pyramid("resnet18", "bundled-uncrowded", (1, 2, 3)).provenance == f"resnet18 bundled-uncrowded {digest}"


def test_the_trunks_differ() -> None:
    one, other = (load_pyramid("resnet18", weights, (1,)).provenance for weights in ("bundled", "bundled-uncrowded"))
    assert one.rpartition(":")[2] != other.rpartition(":")[2]


@pytest.mark.parametrize("weights", ["bundled", "bundled-uncrowded"])
def test_the_trunk_loads_with_its_own_normalisation(weights: str) -> None:
    pyramid = load_pyramid("resnet18", weights, level_indices("resnet18", (4, 8, 16)))
    found = header(weights.replace("bundled", "resnet18"))
    assert pyramid.mean.flatten().tolist() == pytest.approx(json.loads(found["mean"]))
    assert pyramid.std.flatten().tolist() == pytest.approx(json.loads(found["std"]))
    assert pyramid.provenance.startswith(f"resnet18 {weights} sha256:")
    assert not any(p.requires_grad for p in pyramid.parameters())
    assert all(p.dtype == torch.float32 for p in pyramid.parameters())
    maps = pyramid(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert [m.shape[1:] for m in maps] == [(64, 16, 24), (128, 8, 12), (256, 4, 6)]
    assert all(m.isfinite().all() and m.std() > 0.01 for m in maps)


def test_the_transformer_loads_with_its_own_depth() -> None:
    depth = token_depth(VIT, "bundled")
    assert depth == json.loads(header(VIT)["options"])["depth"] < token_depth(VIT)
    tokens = load_tokens(VIT, "bundled", (depth - 1,))
    assert tokens.provenance.startswith("vit_tiny_patch16_224 bundled sha256:")
    for size in ((224, 224), (64, 96)):  # not only the size of its position embeddings
        (found,) = tokens(torch.rand(1, 3, *size))
        assert found.shape == (1, size[0] * size[1] // 256, 192)
        assert found.isfinite().all()
    with pytest.raises(HrbenchError, match=f"expected ascending numbers from 0 to {depth - 1}"):
        load_tokens(VIT, "bundled", (depth,))


def test_a_tag_names_other_weights_and_is_left_out_of_the_provenance() -> None:
    tagged = load_pyramid("resnet18.tv_in1k", "bundled", (1,))
    assert tagged.provenance == load_pyramid("resnet18", "bundled", (1,)).provenance


def test_the_random_state_is_not_the_weights() -> None:
    def map_of(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_pyramid("resnet18", "bundled", (1,))(torch.ones(1, 3, 64, 64))[0]

    assert torch.equal(map_of(0), map_of(1))


@pytest.mark.parametrize("load", [load_pyramid, load_tokens])
@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("test_vit", "bundled"),
        (VIT, "bundled-uncrowded"),
        ("resnet18", "bundled-other"),
        ("resnet18-uncrowded", "bundled"),
    ],
)
def test_what_is_not_bundled_lists_what_is(load, model: str, weights: str) -> None:
    with pytest.raises(HrbenchError) as caught:
        load(model, weights, (1,))
    assert str(caught.value) == (
        f"no {weights} weights for {model}, expected one of: "
        f"resnet18 bundled, resnet18 bundled-uncrowded, {VIT} bundled"
    )


@pytest.mark.parametrize("path", ["bundled-mine.safetensors", "bundled-/../mine.safetensors"])
def test_a_file_whose_name_begins_alike_is_a_file(path: str) -> None:
    with pytest.raises(HrbenchError, match="no such file"):
        load_pyramid("resnet18", path, (1,))


def test_a_level_that_is_not_bundled_is_named() -> None:
    with pytest.raises(
        HrbenchError, match=r"bundled resnet18 lacks what was asked for \(no layer4.*expected strides up to 16"
    ):
        load_pyramid("resnet18", "bundled", (4,))


def test_an_installation_without_weights_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    with pytest.raises(HrbenchError, match="lacks hrbench/weights"):
        load_pyramid("resnet18", "bundled", (1,))


@pytest.mark.parametrize("method", DEMO_METHODS)
def test_demo_presets_use_them_and_record_it(method: str) -> None:
    record = create_method(method, preset="demo").weights_record()
    assert record
    assert all(" bundled sha256:" in source for source in record.values())


@pytest.mark.parametrize(("weights", "file"), [("bundled", "resnet18"), ("bundled-uncrowded", "resnet18-uncrowded")])
def test_a_run_is_another_one_when_its_bundled_file_changes(
    weights: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"backbone": "resnet18.tv_in1k", "weights": weights, "steps": 3}
    for name in LIMITS:
        (tmp_path / f"{name}.safetensors").write_bytes(b"first")
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    before = _identities(options)
    assert before["weights"].startswith(f"{weights} sha256:")
    assert before == {**options, "weights": before["weights"]}
    for name in set(LIMITS) - {file}:
        (tmp_path / f"{name}.safetensors").write_bytes(b"another release")
    assert _identities(options) == before
    (tmp_path / f"{file}.safetensors").write_bytes(b"another release")
    assert _identities(options) != before


def test_a_method_whose_backbone_is_no_option_counts_all_bundled_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_bundled, "_FOLDER", tmp_path)
    seen = set()
    for content in (b"first", b"another release"):
        (tmp_path / "resnet18.safetensors").write_bytes(content)
        seen.add(_identities({"weights": "bundled"})["weights"])
    assert len(seen) == 2
