"""RSTPM+D: distances, sizes of its parts, what learns when, gates, tiles, determinism, and saving."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers import PlainContext, noise_normals
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrbench._util.resources import methods_package
from hrbench.engine.training import Fit, learnt_state, load_learnt_state, seeded
from hrbench.engine.views import Look
from hrbench.errors import HrbenchError
from hrbench.registry import create_method
from hrbench.testing import StackedNormals

methods_package()
from hrbench.methods.rstpm import RSTPM, Stage, combine_levels, distance, focal_loss, gate  # noqa: E402

SMALL = {
    "teacher": "test_efficientnet",
    "second_teacher": "test_byobnet",
    "weights": "random",
    "strides": (4, 8),
    "width": 4,
    "batch_size": 4,
    "steps": 4,
    "discriminator_batch_size": 4,
    "discriminator_steps": 4,
}


def made(**options: object) -> RSTPM:
    with seeded(0):
        method = create_method("rstpm", **{**SMALL, **options})
    assert isinstance(method, RSTPM)
    return method


def fitted(normals: StackedNormals | None = None, **options: object) -> RSTPM:
    method, normals = made(**options), normals or noise_normals(8)
    with seeded(0):
        method.train().fit(normals, Fit(method, held_out=normals, seed=0, device=torch.device("cpu")))
    return method.eval()


def batch(size: tuple[int, int] = (64, 64), n: int = 3) -> Tensor:
    return torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def final(method: RSTPM, images: Tensor) -> Tensor:
    return torch.stack(
        [method.finish({k: m[i] for k, m in method.predict(images).maps.items()}) for i in range(len(images))]
    )


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("preset", ["paper", "native"])
def test_the_parts_have_the_known_sizes(preset: str) -> None:
    with torch.device("meta"):
        method = create_method("rstpm", preset=preset, weights="random")
    assert isinstance(method, RSTPM)
    assert count(method.teacher) == 11_176_512
    assert count(method.second_teacher) == 8_543_296
    assert count(method.student) == 2_782_784
    assert count(method.second_student) == 20_181_571
    assert count(method.discriminator) == 1_948_295
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 2_782_784 + 20_181_571 + 1_948_295
    assert method.multiple == 32


def test_a_wider_discriminator_has_the_known_size() -> None:
    with torch.device("meta"):
        assert count(create_method("rstpm", weights="random", width=64).discriminator) == 7_785_735


@pytest.mark.parametrize("size", [(256, 256), (288, 416)])
def test_shapes_of_the_paper_configuration(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        method = create_method("rstpm", preset="paper", weights="random")
        images = torch.empty(2, 3, *size)
        assert isinstance(method, RSTPM)
        levels, second = method.teacher(images), method.second_teacher(images)
        imitated, rebuilt = method.student(images), method.second_student(levels[-1], second)
        first_maps, second_maps = method.distances(images)
        prediction = method.predict(images)

    def shapes(maps: list[Tensor]) -> list[tuple[int, ...]]:
        return [tuple(m.shape[1:]) for m in maps]

    grid = {s: (size[0] // s, size[1] // s) for s in (4, 8, 16, 32)}
    assert shapes(levels) == [(64, *grid[4]), (128, *grid[8]), (256, *grid[16]), (512, *grid[32])]
    assert shapes(imitated) == shapes(levels)[:-1]
    assert shapes(second) == shapes(rebuilt) == [(256, *grid[4]), (512, *grid[8]), (1024, *grid[16])]
    assert shapes(first_maps) == shapes(second_maps) == [grid[4], grid[8], grid[16]]
    assert list(prediction.maps) == ["level1", "level2", "level3", "logit"]
    assert {tuple(m.shape) for m in prediction.maps.values()} == {(2, *size)}


def test_distance_of_known_directions() -> None:
    x = torch.randn((2, 16, 5, 4), generator=torch.Generator().manual_seed(0))
    y = torch.randn((2, 16, 5, 4), generator=torch.Generator().manual_seed(1))
    orthogonal = y - (x * y).sum(dim=1, keepdim=True) / x.square().sum(dim=1, keepdim=True) * x
    for other, expected in ((x, 0.0), (orthogonal, 1.0), (-x, 2.0)):
        torch.testing.assert_close(distance(x, other), torch.full((2, 5, 4), expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(distance(x, y), 1 - torch.cosine_similarity(x, y, dim=1), atol=1e-6, rtol=0)


@given(st.floats(1e-2, 1e2), st.floats(1e-2, 1e2))
def test_distance_ignores_lengths(a: float, b: float) -> None:
    x = torch.randn((1, 8, 3, 3), generator=torch.Generator().manual_seed(0))
    y = torch.randn((1, 8, 3, 3), generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(0.5, 2, 9).view(1, 1, 3, 3)
    torch.testing.assert_close(distance(a * scale * x, b * y), distance(x, y), atol=1e-6, rtol=0)


def test_distance_is_precise_where_it_is_small() -> None:
    x = torch.ones(1, 4, 1, 1)
    y = x.clone()
    y[0, 0] += 1e-4
    angle = math.acos((4 + 1e-4) / 2 / math.sqrt(3 + (1 + 1e-4) ** 2))
    assert abs(float(distance(x, y)) / (angle**2 / 2) - 1) < 1e-2  # 1 - cos in float32 would be 0


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, 0.414932), (2.0, 0.113281), (4.0, 0.039706)])
def test_focal_loss(gamma: float, expected: float) -> None:
    p, y = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([1.0, 0, 0])
    assert abs(float(focal_loss(torch.logit(p), y, gamma)) - expected) < 1e-6


def test_focal_loss_is_stable_for_any_logit() -> None:
    logits = torch.tensor([-200.0, -50, 0, 50, 200], requires_grad=True)
    for label in (0.0, 1.0):
        loss = focal_loss(logits, torch.full((5,), label), 2.0)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_the_students_loss_is_stpm_s_by_paper_or_by_code() -> None:
    by_paper, by_code = made(), made(loss_factor=1.0)
    with torch.no_grad():
        first, second = by_paper.distances(batch())
        half = torch.stack([level.mean() for level in (*first, *second)]).sum()
        assert torch.equal(by_paper.student_loss(batch()), half)
        assert torch.equal(by_code.student_loss(batch()), 2 * half)
    with pytest.raises(HrbenchError, match="loss_factor of rstpm is 0, expected a number above 0"):
        made(loss_factor=0)


@pytest.mark.parametrize(("inputs", "expected"), [(60, 3000), (961, 3100), (992, 3100), (993, 3200)])
def test_a_pass_of_the_paper_counts_its_incomplete_batch(inputs: int, expected: int) -> None:
    class Asked(PlainContext):
        def train(self, *arguments: object, steps: int, **others: object) -> list[float]:
            self.steps = steps
            return []

    preset = RSTPM.presets["paper"].options
    context = Asked()
    made(epochs=preset["epochs"], steps=preset["steps"], batch_size=32).fit_students(range(inputs), context)
    assert context.steps == expected


def test_what_learns_in_which_stage() -> None:
    method = made(teacher="resnet10t").train()  # of which timm builds nothing beyond the levels asked for
    method.student_loss(batch()).backward()
    learning = {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    still = {name for name, p in method.named_parameters() if p.grad is None}
    assert learning == {"student", "second_student"}
    assert not any(name.startswith(("student.", "second_student.")) for name in still)
    method.zero_grad(set_to_none=True)
    method.discriminator_loss(batch()).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == name.startswith("discriminator."), name


def test_the_second_stage_leaves_the_students_and_their_statistics_alone() -> None:
    method, normals = made(), noise_normals(8)
    method.train()
    context = Fit(method, held_out=normals, seed=0, device=torch.device("cpu"))
    with seeded(0):
        method.fit_students(normals, context)
        before = {k: v.clone() for k, v in method.state_dict().items()}
        method.fit_discriminator(normals, context)
    changed = {k.partition(".")[0] for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"discriminator"}
    assert not method.teacher.network.training


def test_students_overfit_a_few_images() -> None:
    method, normals = made(discriminator="off"), noise_normals(4)
    with seeded(0):
        losses = Fit(method.train(), held_out=normals, seed=0, device=torch.device("cpu")).train(
            normals,
            method.student_loss,
            torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.4, 0.9, weight_decay=1e-4),
            steps=80,
            batch_size=4,
        )
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]


def test_the_attention_gate_does_not_cancel() -> None:
    """One plane multiplied into the compared feature would: directions do not see it."""
    with seeded(0):
        stage = Stage(8, 8, 16).eval()
    x, target = batch((8, 8), 1).repeat(1, 3, 1, 1)[:, :8], batch((16, 16), 1).repeat(1, 6, 1, 1)[:, :16]
    with torch.no_grad():
        _, open_gate = stage(x, target)
        stage.attention[-2].bias += 4 * torch.randn(1, generator=torch.Generator().manual_seed(0))
        stage.attention[-2].weight *= 50
        _, other_gate = stage(x, target)
        assert distance(open_gate, other_gate).max() > 1e-4
        # The gate carries one number per position: with constant attention nothing of the target gets through.
        stage.attention[-2].weight.zero_()
        torch.testing.assert_close(stage(x, target)[1], stage(x, target.flip(2))[1])


def test_combinations() -> None:
    levels = [torch.rand((4, 4), generator=torch.Generator().manual_seed(s)) for s in range(3)]
    product = levels[0] * levels[1] * levels[2]
    torch.testing.assert_close(combine_levels(levels, "prod"), product)
    torch.testing.assert_close(combine_levels(levels, "geomean"), product ** (1 / 3))
    torch.testing.assert_close(combine_levels(levels, "sum"), sum(levels))


@given(st.floats(-30, 30))
def test_a_constant_gate_keeps_the_order(logit: float) -> None:
    fused = 1e-5 * torch.rand(200, generator=torch.Generator().manual_seed(0))
    found = gate(fused, torch.full((200,), logit))
    assert torch.equal(found.argsort(stable=True), fused.argsort(stable=True))
    assert (found[fused > 0] > 0).all()


@pytest.mark.parametrize(
    ("combine", "mode"), list(itertools.product(("prod", "geomean", "sum"), ("mul", "only", "off")))
)
def test_every_read_out(combine: str, mode: str) -> None:
    method = made(combine=combine, discriminator=mode).eval()
    found = final(method, batch())
    assert found.shape == (3, 64, 64)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert len(found.unique()) > 0.9 * found.numel()  # no ties
    assert (method.discriminator is None) == (mode == "off")


def test_strong_anomalies_do_not_tie() -> None:
    levels = {"level1": torch.tensor([[2.0, 3.0]]), "level2": torch.tensor([[2.0, 3.0]])}
    for mode in ("mul", "only"):
        found = made(discriminator=mode).finish({**levels, "logit": torch.tensor([[40.0, 60.0]])})
        assert found[0, 0] < found[0, 1]


@pytest.mark.parametrize(
    ("teacher", "second"),
    [("resnet10t", "test_resnet"), ("test_convnext", "test_mambaout"), ("mobilenetv2_050", "test_nfnet")],
)
def test_other_pairs_of_teachers(teacher: str, second: str) -> None:
    method = made(teacher=teacher, second_teacher=second).eval()
    assert final(method, batch((48, 80), 1)).shape == (1, 48, 80)
    record = method.weights_record()
    assert record == {"teacher": f"{teacher} random", "second_teacher": f"{second} random"}


def test_tiles_agree_with_the_whole_image() -> None:
    """Away from the borders of a tile its maps are those of the whole image: 256 px are enough for stride 16."""
    method = made(teacher="resnet10t", second_teacher="resnet10t", strides=(4, 8, 16), width=4).eval()
    with torch.no_grad():
        for module in method.modules():  # batch statistics of a network that has seen images
            if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
                module.weight.fill_(1.0)
        image = torch.nn.functional.interpolate(batch((12, 48), 1), (96, 384), mode="bilinear")
        image = (image + 0.2 * batch((96, 384), 1)).clamp(0, 1)
        whole = method.predict(image).maps
        tile = method.predict(image[:, :, :, 64:]).maps  # its left border is 64 px into the image
    for name, expected in whole.items():
        inner = (..., slice(64 + 256, 384))
        found = tile[name][..., 256:]
        torch.testing.assert_close(found, expected[inner], atol=1e-5 * max(1.0, float(expected.std())), rtol=1e-5)
        near = (tile[name][..., :8] - expected[..., 64:72]).abs().max()
        assert near > 1e-4, "the border must matter somewhere, or this test shows nothing"


def test_a_pasted_square_stands_out_after_a_short_fit() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    phases = torch.linspace(0, 6, 8)
    waves = torch.stack(
        [torch.stack([torch.sin(rows / 3 + p), torch.cos(columns / 3 + p), torch.sin(rows / 5 + p)]) for p in phases]
    )
    noise = torch.rand(waves.shape, generator=torch.Generator().manual_seed(0))
    normals = StackedNormals((0.5 + 0.2 * waves + 0.05 * noise).clamp(0, 1))
    method = fitted(normals, steps=50, discriminator_steps=40, discriminator_lr=3e-3, anomalies="sized")
    image = normals.inputs[:1].clone()
    image[:, :, 20:44, 20:44] = batch((24, 24), 1)
    found = final(method, image)[0]
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[20:44, 20:44] = True
    assert found[inside].mean() > 5 * found[~inside].mean()


def test_merged_tiles_are_finished_on_the_native_grid() -> None:
    method, look = made().eval(), Look.parse("tiled:64:16")
    image = (batch((100, 130), 1)[0].permute(1, 2, 0) * 255).byte().numpy()
    tiles, placement = look.split(image)
    with torch.no_grad():
        maps = method.predict(tiles.float() / 255).maps
    merged = {name: look.merge(m, placement) for name, m in maps.items()}
    expected = merged["level1"] * merged["level2"] * merged["logit"].sigmoid().clamp(min=1e-3)
    assert method.finish(merged).shape == (100, 130)
    torch.testing.assert_close(method.finish(merged), expected)


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    first, again = final(fitted(), batch()), final(fitted(), batch())
    assert torch.equal(first, again)
    method = made()
    with seeded(0):
        normals = noise_normals(8)
        method.train().fit(normals, Fit(method, held_out=normals, seed=1, device=torch.device("cpu")))
    assert not torch.equal(final(method.eval(), batch()), first)


def test_an_interrupted_fit_ends_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hrbench.engine.training.CHECKPOINT_SECONDS", 0.0)
    normals, cpu = noise_normals(8), torch.device("cpu")
    expected = learnt_state(fitted(normals))
    for stop_at in (2, 5):  # steps: in the first stage, in the second
        checkpoint = tmp_path / f"{stop_at}.pt"
        method, calls = made(), itertools.count()
        for name in ("student_loss", "discriminator_loss"):
            plain = getattr(method, name)

            def failing(images: Tensor, plain=plain, calls=calls, stop_at=stop_at) -> Tensor:
                if next(calls) == stop_at:
                    raise KeyboardInterrupt
                return plain(images)

            monkeypatch.setattr(method, name, failing)
        with seeded(0), pytest.raises(KeyboardInterrupt):
            method.train().fit(normals, Fit(method, held_out=normals, seed=0, device=cpu, checkpoint=checkpoint))
        method = made()
        with seeded(0):
            method.train().fit(normals, Fit(method, held_out=normals, seed=0, device=cpu, checkpoint=checkpoint))
        found = learnt_state(method)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_all_that_is_learnt_is_saved() -> None:
    method = fitted()
    state = learnt_state(method)
    assert not any(key.startswith(("teacher.", "second_teacher.")) for key in state)
    other = made(steps=1)
    load_learnt_state(other, state)
    assert torch.equal(final(other.eval(), batch()), final(method, batch()))


def test_epochs_and_steps_are_both_least() -> None:
    def first_stage(**options: object) -> int:
        context = PlainContext()
        made(discriminator="off", **options).train().fit(noise_normals(24), context)
        return context.steps

    assert first_stage(steps=2, epochs=3, batch_size=10) == 3 * 3
    assert first_stage(steps=9, epochs=1, batch_size=10) == 9
    assert first_stage(steps=2) == 2


def test_mistakes_are_named() -> None:
    for options, message in (
        ({"combine": "product"}, "option combine of rstpm is 'product', expected one of"),
        ({"discriminator": "on"}, "option discriminator of rstpm is 'on', expected one of"),
        ({"anomalies": "perlim"}, "option anomalies of rstpm is 'perlim', expected one of .*; did you mean 'perlin'"),
        ({"strides": (4, 16)}, r"strides \[4, 16\] of rstpm: expected each twice"),
        ({"strides": (3, 6)}, "test_efficientnet has no features at stride 3"),
        ({"strides": (16, 32)}, r"test_efficientnet has no features at stride 64; it has \[2, 4, 8, 16, 32\]"),
        ({"second_teacher": "test_convnext", "strides": (2, 4)}, "test_convnext has no features at stride 2"),
        ({"second_teacher": "test_vit"}, "test_vit"),
        ({"probability": 0.0}, "probability of rstpm is 0.0, expected above 0"),
        ({"weights": "somewhere.pth"}, "expected second_weights for test_byobnet as well"),
    ):
        with pytest.raises(HrbenchError, match=message):
            create_method("rstpm", **{**SMALL, **options})


def test_the_held_out_images_are_not_looked_at() -> None:
    class Sealed(StackedNormals):
        def __iter__(self):
            raise AssertionError("the last step is kept: no checkpoint is chosen")

        batches = __iter__

    method, normals = made(), noise_normals(8)
    with seeded(0):
        method.train().fit(normals, Fit(method, held_out=Sealed(normals.inputs), seed=0, device=torch.device("cpu")))
