"""The pretraining tool: pictures by formulas, a task that can be interrupted, files that load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pretrain_backbone
import pytest
import safetensors.torch
import torch
from helpers import write_tree
from pretrain import pretext, probe
from pretrain.canvases import canvas, canvases
from pretrain.fields import FORMULAS
from pretrain.loop import one_cycle
from pretrain.probe import gaussian, mahalanobis
from pretrain.recipe import Recipe
from pretrain.stem import bank, cosines

from hrbench.data import load_dataset
from hrbench.protocol import load_protocol
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job

TINY = Recipe(model="test_resnet", canvases=4, canvas=64, crop=32, batch=4, steps=4, stem="random")


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_fields_are_in_range_and_depend_on_the_generator_only(name: str) -> None:
    def draw(seed: int) -> np.ndarray:
        return FORMULAS[name](np.random.default_rng(seed), 64)

    for seed in range(3):
        field = draw(seed)
        assert field.shape == (64, 64)
        assert field.dtype == np.float32
        assert 0 <= field.min() <= field.max() <= 1
        np.testing.assert_array_equal(field, draw(seed))
    assert any(draw(seed).std() > 0.02 for seed in range(3)), "empty pictures teach nothing"


def test_a_canvas_does_not_depend_on_the_others() -> None:
    drawn, digest = canvases(3, range(4), 48)
    assert drawn.shape == (4, 48, 48, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[2], canvas(3, 2, 48))
    assert digest == canvases(3, range(4), 48)[1] != canvases(4, range(4), 48)[1]
    assert len({picture.tobytes() for picture in drawn}) == 4


def test_crops_come_from_their_canvas() -> None:
    pictures = np.arange(3 * 40 * 40, dtype=np.int64).reshape(3, 40, 40, 1) % 251
    pictures = np.broadcast_to(pictures, (3, 40, 40, 3)).astype(np.uint8) // 4 + np.uint8(80) * np.arange(
        3, dtype=np.uint8
    ).reshape(3, 1, 1, 1)
    chosen = np.array([2, 0, 1, 0])
    pieces = pretext.cut(pictures, chosen, 16, np.random.default_rng(0))
    assert pieces.shape == (4, 3, 16, 16)
    assert (pieces.flatten(1).float().mean(dim=1) // 80).int().tolist() == chosen.tolist()


def test_a_batch_depends_on_the_step_only() -> None:
    recipe = Recipe(canvases=2, canvas=48, crop=32, batch=16, jitter=0.0, light=0.0)
    pictures = np.stack([np.full((48, 48, 3), level, np.uint8) for level in (50, 200)])
    images, canvas_of = pretext.draw_batch(pictures, recipe, 5)
    assert torch.equal(images, pretext.draw_batch(pictures, recipe, 5)[0])
    lit = dataclasses.replace(recipe, jitter=0.5, light=0.6)
    assert not torch.equal(*(pretext.draw_batch(pictures, lit, step)[0] for step in (5, 6)))
    assert set(canvas_of.tolist()) == {0, 1}
    expected = torch.tensor([50 / 255, 200 / 255])[canvas_of].view(-1, 1, 1, 1)
    torch.testing.assert_close(images, expected.expand_as(images))


def test_augmented_images_stay_images() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = pretext.augment(images, 1.0, 0.1, torch.Generator().manual_seed(1))
    assert 0 <= changed.min() <= changed.max() <= 1
    assert (changed - images).abs().mean() > 0.01
    torch.testing.assert_close(pretext.augment(images, 0.0, 0.1, torch.Generator().manual_seed(1)), images)


def test_contrast_goes_down_to_the_faintest() -> None:
    images = 0.5 + 0.01 * torch.randn(4000, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    changed = pretext.augment(images, 1.0, 0.05, torch.Generator().manual_seed(1))
    inside = (changed.amin(dim=(1, 2, 3)) > 0) & (changed.amax(dim=(1, 2, 3)) < 1)
    grey = (changed == changed[:, :1]).all(dim=(1, 2, 3))
    gain = (changed.std(dim=(2, 3)) / images.std(dim=(2, 3)))[inside & ~grey].prod(dim=1) ** (1 / 3)
    # Log-uniform from 0.05 to 1.5, times the mean of three tints' exponents, 0.12 wide each.
    expected = torch.logspace(math.log10(0.05), math.log10(1.5), 11)[1:-1]
    torch.testing.assert_close(gain.quantile(torch.linspace(0.1, 0.9, 9)), expected, rtol=0.15, atol=0)


def test_light_is_uneven_and_names_nothing() -> None:
    images = torch.full((512, 3, 24, 24), 0.2)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(pretext.illuminate(images, 0.0, 0.0, generator), images)
    lit = pretext.illuminate(images, 0.0, 0.2, generator)
    assert torch.equal(lit[:, 0], lit[:, 2]), "light has no colour here"
    logs = (lit[:, 0] / 0.2).log()
    assert logs.std() == pytest.approx(0.15, rel=0.1)
    assert logs.mean().abs() < 0.03
    jumps = (logs[:, 1:] - logs[:, :-1]).abs().amax(dim=(1, 2)) > 0.1
    assert 0.05 < jumps.float().mean() < 0.5, "some lights have a border"
    noise = pretext.illuminate(images, 1.0, 0.0, generator) - images
    assert noise.std() == pytest.approx(0.01, rel=0.2)


def test_the_banks_filters_see_no_brightness_but_the_means() -> None:
    filters = bank(64, 7, 0)
    assert filters.shape == (64, 3, 7, 7)
    assert torch.equal(filters, bank(64, 7, 0))
    assert not torch.equal(filters, bank(64, 7, 1))
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(64))
    blind = filters.sum(dim=(1, 2, 3)).abs() < 1e-5
    assert blind.view(8, 8).sum(dim=1).tolist() == [8, 7] * 4, "tints' means are blind as well"
    grey = (filters == filters[:, :1]).all(dim=(1, 2, 3))
    assert grey.float().mean() == pytest.approx(13 / 16)
    # Every frequency and angle is seen by some filter: the summed power spectrum has no hole in its band.
    power = torch.fft.fft2(filters[grey & blind, 0], s=(32, 32)).abs().square().sum(dim=0)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.fftfreq(32)[None])
    assert power[(frequency > 0.1) & (frequency < 0.38)].min() > 0.03 * power.max()
    assert power[0, 0] < 1e-6 * power.max()


def test_cosines_are_orthogonal_and_make_all_outputs_vary_alike() -> None:
    filters = cosines(192, 16)
    assert filters.shape == (192, 3, 16, 16)
    rows = filters.flatten(1)
    lengths = rows.norm(dim=1)
    torch.testing.assert_close(rows @ rows.T, torch.diag(lengths**2), atol=1e-4, rtol=0)
    assert (filters.sum(dim=(1, 2, 3)).abs() > 1e-3).sum() == 1, "one filter answers to even grey"
    assert lengths[0] == pytest.approx(0.05)
    # Amplitudes that fall as 1 / f, as those of pictures do.
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None])
    amplitude = torch.where(frequency > 0, 1 / frequency, 0)
    white = torch.fft.rfft2(torch.randn(200, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    pictures = torch.fft.irfft2(white * amplitude).expand(-1, 3, -1, -1)
    answers = torch.nn.functional.conv2d(pictures, filters, stride=16).std(dim=(0, 2, 3))[1:144]
    assert answers.max() < 2 * answers.min()


def test_a_training_begins_with_the_bank(tmp_path: Path) -> None:
    pictures, _ = canvases(0, range(4), 64)
    for stem, same in (("bank", True), ("random", False)):
        recipe = dataclasses.replace(TINY, model="resnet18", stem=stem, rate=0.0, steps=1)
        trunk = pretext.train(pictures, recipe, tmp_path / stem, device=torch.device("cpu"))
        first = trunk.network.get_submodule("conv1").weight.detach()
        unit = first / first.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        assert torch.allclose(unit, bank(64, 7, 0), atol=1e-5) == same


def test_crowding_is_one_where_even_and_the_width_on_a_line() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.randn(200_000, 6, generator=generator)
    assert pretext.crowding(even) == pytest.approx(1, abs=0.01)
    assert pretext.crowding(even * torch.tensor([1.0, 1, 1, 0, 0, 0])) == pytest.approx(2, abs=0.02)
    line = torch.randn(100, 1, generator=generator) * torch.randn(6, generator=generator)
    assert pretext.crowding(line) == pytest.approx(6, rel=1e-4)
    values = torch.linalg.eigvalsh(torch.cov(even[:20].T))
    assert pretext.crowding(even[:20]) == pytest.approx(float(6 * values.square().sum() / values.sum() ** 2), rel=1e-4)


def test_the_loss_is_that_of_naming_and_crowding() -> None:
    pictures, _ = canvases(0, range(4), 64)
    recipe = dataclasses.replace(TINY, places=10_000, dense=0.7, spread=0.3)
    torch.manual_seed(0)
    trunk = pretext.Trunk(recipe).eval()
    images, canvas_of = pretext.draw_batch(pictures, recipe, 0)
    loss, figures = pretext.loss_of(trunk, images, canvas_of, recipe, 0)
    maps = trunk(images)
    units = [torch.nn.functional.normalize(m, dim=1) for m in maps]
    classes = [torch.nn.functional.normalize(c, dim=1) for c in trunk.classes]
    dense = [
        torch.nn.functional.cross_entropy(
            recipe.scale * torch.einsum("bchw,kc->bkhw", u, c), canvas_of.view(-1, 1, 1).expand(-1, *u.shape[2:])
        )
        for u, c in zip(units, classes, strict=True)
    ]
    pooled = torch.nn.functional.normalize(maps[-1].mean(dim=(2, 3)), dim=1) @ classes[-1].T * recipe.scale
    crowded = torch.stack([pretext.crowding(u.transpose(0, 1).flatten(1).T) for u in units]).mean()
    expected = (
        0.7 * torch.stack(dense).mean() + 0.3 * torch.nn.functional.cross_entropy(pooled, canvas_of) + 0.3 * crowded
    )
    torch.testing.assert_close(loss, expected)
    assert float(figures["crowding"]) == pytest.approx(crowded.item(), rel=1e-4)


def test_the_cycle_rises_and_falls() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(1)
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] < 0.01
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_probes_distance_is_mahalanobis() -> None:
    rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[2.0, 0.3, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 0.4]]
    )
    mean, whiten = gaussian(rows)
    covariance = np.cov(rows.numpy().T.astype(np.float64))
    covariance += 0.01 * np.trace(covariance) / 3 * np.eye(3)
    centred = (rows - rows.mean(dim=0)).numpy()
    expected = np.einsum("nc,cd,nd->n", centred, np.linalg.inv(covariance), centred) / 3
    found = mahalanobis(rows.T.reshape(1, 3, 20, 25), mean, whiten).flatten()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_the_nearest_is_the_nearest(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    features, memory = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(40, 5, generator=generator)
    expected = (features[:, None] - memory[None, :, :, None, None]).square().sum(dim=2).sqrt().amin(dim=1)
    torch.testing.assert_close(probe.nearest(features, memory), expected)


@pytest.mark.parametrize("name", ["Gaussian", "Nearest"])
def test_the_probes_are_methods(name: str, tmp_path: Path) -> None:
    (category,) = load_dataset("folder", write_tree(tmp_path / "data")).categories
    options = {"backbone": "test_resnet", "weights": "random", "samples": 500}
    job = make_job(category, f"pretrain.adapter:{name}", preset="probe", view="tiled:32:8", options=options, seed=0)
    found = run_job(job, tmp_path / "runs", [load_protocol("native")], device=torch.device("cpu")).records
    (auroc,) = found.loc[(found["metric"] == "pixel_auroc") & (found["subset"] == "all"), "value"]
    assert auroc > 0.9


def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    pictures, _ = canvases(0, range(4), 64)
    cpu = torch.device("cpu")
    whole = pretext.train(pictures, TINY, tmp_path / "whole", device=cpu, every=2)
    pretext.train(pictures, TINY, tmp_path / "parts", device=cpu, every=2, stop=2)
    pretext.train(pictures, TINY, tmp_path / "parts", device=cpu, every=2, stop=0)
    parts = pretext.train(pictures, TINY, tmp_path / "parts", device=cpu, every=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))

    def without_time(folder: Path) -> list[str]:
        lines = (folder / "curve.jsonl").read_text().splitlines()
        return [",".join(part for part in line.split(",") if "seconds" not in part) for line in lines]

    assert without_time(tmp_path / "whole") == without_time(tmp_path / "parts")
    assert len(without_time(tmp_path / "whole")) == 2


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pictures, _ = canvases(0, range(4), 64)
    pretext.train(pictures, TINY, tmp_path, device=torch.device("cpu"), stop=1)
    other = dataclasses.replace(TINY, steps=5)
    with pytest.raises(SystemExit, match="belongs to another recipe"):
        pretext.train(pictures, other, tmp_path, device=torch.device("cpu"))


def test_a_training_starts_from_given_weights(tmp_path: Path) -> None:
    pictures, _ = canvases(0, range(4), 64)
    cpu = torch.device("cpu")
    first = pretext.train(pictures, TINY, tmp_path / "first", device=cpu, stop=2)
    still = dataclasses.replace(TINY, rate=0.0, start="given")
    second = pretext.train(pictures, still, tmp_path / "second", device=cpu, start=tmp_path / "first" / "checkpoint.pt")
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_start_that_does_not_fit_is_named(tmp_path: Path) -> None:
    pictures, _ = canvases(0, range(4), 64)
    cpu = torch.device("cpu")
    pretext.train(pictures, TINY, tmp_path / "first", device=cpu, stop=1)
    other = dataclasses.replace(TINY, canvases=3, start="given")
    with pytest.raises(
        SystemExit, match=r"checkpoint\.pt: expected a trunk's checkpoint of the same model and canvases"
    ):
        pretext.train(pictures[:3], other, tmp_path / "second", device=cpu, start=tmp_path / "first" / "checkpoint.pt")


@pytest.mark.parametrize("setting", ["stem=cosines", "stems=bank"])
def test_an_unknown_setting_is_named(setting: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"--set {setting}: unknown, expected"):
        pretrain_backbone.main(["trunk", "--folder", str(tmp_path), "--smoke", "--set", setting])


def test_the_smoke_run_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain_backbone.main(["trunk", "--folder", str(tmp_path / "trunk"), "--smoke", "--device", "cpu"])
    trunk = tmp_path / "trunk" / "resnet18.safetensors"
    with safetensors.safe_open(trunk, framework="pt") as file:
        header = file.metadata()
        dtypes = {(file.get_tensor(key).ndim > 1, file.get_tensor(key).dtype) for key in file.keys()}  # noqa: SIM118
    assert header["model"] == "resnet18"
    assert header["steps"] == "6"
    assert dtypes == {(True, torch.float16), (False, torch.float32)}
    student = [
        "tokens", "--trunk", str(trunk), "--smoke", "--device", "cpu", "--set", "depth=3", "canvases=2",
    ]  # fmt: skip
    pretrain_backbone.main([*student, "--folder", str(tmp_path / "tokens")])
    first = tmp_path / "tokens" / "vit_tiny_patch16_224.safetensors"
    with safetensors.safe_open(first, framework="pt") as file:
        assert file.metadata()["options"] == '{"depth": 3}'
        assert "distillation of resnet18 file:resnet18.safetensors sha256:" in file.metadata()["made_by"]
    pretrain_backbone.main(
        [*student, "steps=1", "rate=0.0", "--folder", str(tmp_path / "further"), "--start", str(first)]
    )
    further = tmp_path / "further" / first.name
    for key, value in safetensors.torch.load_file(first).items():
        assert torch.equal(value.half(), safetensors.torch.load_file(further)[key].half()), key
    with safetensors.safe_open(further, framework="pt") as file:
        assert json.loads(file.metadata()["recipe"])["start"] == hashlib.sha256(first.read_bytes()).hexdigest()[:16]
    assert capsys.readouterr().out.count("MB") == 3
    assert "</svg>" in (tmp_path / "trunk" / "curve.svg").read_text()
