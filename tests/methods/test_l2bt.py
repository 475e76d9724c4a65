"""L2BT: students, distance, layer order, blur, geometry, determinism, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import PlainContext, noise_normals
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hrbench._util.resources import methods_package
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import finish
from hrbench.engine.inference import predict
from hrbench.engine.views import Look, View
from hrbench.errors import HrbenchError
from hrbench.method import Method, Prediction
from hrbench.registry import create_method

methods_package()
from hrbench.methods import l2bt  # noqa: E402
from hrbench.methods.l2bt import blur, distance, student  # noqa: E402

SMALL = {"teacher": "test_vit", "weights": "random", "steps": 20, "lr": 1e-3}


class TwoLayers(nn.Module):
    """A teacher whose middle feature is e1 and whose last is e2, everywhere."""

    def __init__(self, *, swapped: bool = False) -> None:
        super().__init__()
        self.width = 2
        self.swapped = swapped

    def grid(self, images: Tensor) -> tuple[int, int]:
        return 2, 3

    def forward(self, images: Tensor) -> list[Tensor]:
        pair = [torch.eye(2)[k].expand(len(images), 6, 2) for k in (0, 1)]
        return pair[::-1] if self.swapped else pair


def fitted(**options: object) -> tuple[Method, PlainContext]:
    torch.manual_seed(0)
    method = create_method("l2bt", **{**SMALL, **options})
    context = PlainContext()
    method.fit(noise_normals(16), context)
    return method.eval(), context


@torch.no_grad()
def map_of(method: Method, batch: Tensor) -> Tensor:
    return method.predict(batch).maps["anomaly"]


def batch(size: tuple[int, int] = (64, 64), n: int = 3) -> Tensor:
    return torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(7))


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.tensor(weight))
    layer.bias = nn.Parameter(torch.tensor(bias))
    return layer


def test_students_have_the_published_size_and_share_nothing() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in student(768).parameters()) == 1_771_776
        method = create_method("l2bt", preset="paper", weights="random")
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 3_543_552
    forward, backward = ({id(p) for p in s.parameters()} for s in (method.forward_student, method.backward_student))
    assert not forward & backward
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert method.teacher.blocks == (7, 11)
    assert method.multiple == 14


def test_default_blocks_are_two_thirds_and_last() -> None:
    assert create_method("l2bt", **SMALL).teacher.blocks == (3, 5)
    with torch.device("meta"):
        deep = create_method("l2bt", teacher="vit_large_patch14_dinov2", weights="random")
    assert deep.teacher.blocks == (15, 23)


@pytest.mark.parametrize(("cosine", "expected"), [(1.0, 0.0), (0.5, 1.0), (0.0, 2**0.5), (-1.0, 2.0)])
def test_distance(cosine: float, expected: float) -> None:
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([cosine, (1 - cosine**2) ** 0.5])
    assert float(distance(a, b)) == pytest.approx(expected, abs=1e-6)
    assert float(distance(3 * a, 0.01 * b)) == pytest.approx(expected, abs=1e-6)


def test_fresh_students_have_a_loss_of_about_two() -> None:
    torch.manual_seed(0)
    method = create_method("l2bt", **SMALL)
    method.teacher = None  # replaced by random features
    middle, last = torch.randn(2, 4, 100, 64).unbind()
    pairs = [(method.backward_student(last), middle), (method.forward_student(middle), last)]
    method.translate = lambda _: pairs
    assert float(method.loss([]).detach()) == pytest.approx(2.0, abs=0.1)
    method.translate = lambda _: [(5 * middle, middle), (last / 7, last)]
    assert float(method.loss([])) == pytest.approx(0.0, abs=1e-5)


def test_the_two_layers_are_not_swapped() -> None:
    torch.manual_seed(0)
    method = create_method("l2bt", **SMALL)
    # e1 -> e2 and e2 -> e1; the bias makes both miss on the other input.
    method.forward_student = linear([[0.0, 0.9], [0.0, 0.1]], [0.0, 1.0])
    method.backward_student = linear([[0.1, 0.0], [0.9, 0.0]], [1.0, 0.0])
    method.teacher = TwoLayers()
    assert float(map_of(method, batch()).abs().max()) == pytest.approx(0.0, abs=1e-6)
    assert map_of(method, batch()).shape == (3, 2, 3)
    method.teacher = TwoLayers(swapped=True)
    assert all(bool((distance(p, a) > 0.1).all()) for p, a in method.translate(method.teacher(batch())))


def test_map_is_the_product_of_both_directions() -> None:
    method, _ = fitted()
    backward, forward = (distance(p, a) for p, a in method.translate(method.teacher(batch((64, 96)))))
    found = map_of(method, batch((64, 96)))
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found[:, 1, 2], (backward * forward)[:, 1 * 6 + 2])
    assert found.min() >= 0
    assert found.max() <= 4


def test_fit_lowers_the_loss_of_both_directions() -> None:
    torch.manual_seed(0)
    fresh = create_method("l2bt", **SMALL)
    method, context = fitted(steps=60)
    assert context.losses[-1] < 0.7 * context.losses[0]
    tokens = method.teacher(batch())  # equal seeds: both have the same teacher
    for before, after in zip(fresh.translate(tokens), method.translate(tokens), strict=True):
        assert distance(*after).mean() < distance(*before).mean()


def test_only_students_learn() -> None:
    torch.manual_seed(0)
    method = create_method("l2bt", **SMALL).train()
    method.loss(method.teacher(batch())).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name


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
    other = create_method("l2bt", **SMALL).eval()
    assert not torch.equal(map_of(other, batch()), map_of(method, batch()))
    other.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))
    assert torch.equal(map_of(other, batch()), map_of(method, batch()))


def test_epochs_become_steps() -> None:
    _, context = fitted(steps=None, epochs=2, batch_size=6)
    assert len(context.losses) == 2 * 3


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_blur_of_an_impulse(padding: str) -> None:
    impulse = torch.zeros(81, 91, dtype=torch.float64)
    impulse[40, 45] = 1
    found = blur(impulse, padding=padding)
    rows, columns = torch.arange(81.0) - 40, torch.arange(91.0) - 45
    assert float(found.sum()) == pytest.approx(1)
    assert float(found.max()) == pytest.approx(0.00691, abs=1e-5)
    assert float((found.sum(1) * rows.double().square()).sum()) == pytest.approx(22)
    assert float((found.sum(0) * columns.double().square()).sum()) == pytest.approx(22)
    support = found.nonzero()
    assert support.amin(0).tolist() == [40 - 19, 45 - 19]
    assert support.amax(0).tolist() == [40 + 19, 45 + 19]


def test_blur_is_the_boxes_of_the_paper() -> None:
    x = torch.rand(40, 50, dtype=torch.float64)
    expected = x[None, None]
    for width in (5, 5, 5, 5, 5, 7, 7, 7):
        expected = nn.functional.avg_pool2d(expected, width, 1, width // 2, count_include_pad=True)
    torch.testing.assert_close(blur(x, padding="zero"), expected[0, 0])


def test_blur_of_a_constant() -> None:
    ones = torch.ones(100, 120)
    torch.testing.assert_close(blur(ones), ones)
    zero = blur(ones, padding="zero")
    assert float(zero[0, 60]) == pytest.approx(0.280, abs=5e-4)
    assert float(zero[0, 0]) == pytest.approx(0.078, abs=5e-4)
    assert float(zero[50, 60]) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (40, 3), (5, 5)])
def test_blur_of_tiny_maps(shape: tuple[int, int]) -> None:
    for padding in ("reflect", "zero"):
        found = blur(torch.ones(shape), padding=padding)
        assert found.shape == shape
        assert found.isfinite().all()
    torch.testing.assert_close(blur(torch.ones(shape)), torch.ones(shape))


class Largest(TorchDispatchMode):
    """Knows the largest tensor that was made by computing."""

    pixels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("avg_pool2d", "constant_pad_nd", "reflection_pad2d"):
            self.pixels = max(self.pixels, made.numel())
        return made


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize("height", [152, 153, 171, 172, 304, 500])
def test_strips_change_no_bit_and_take_no_memory_of_the_map_s_size(
    height: int, padding: l2bt.Padding, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(height)
    map_ = torch.randn(height, 30)
    whole = blur(map_, padding=padding)
    monkeypatch.setattr(l2bt, "_STRIP", 1)  # strips as low as they may be
    with Largest() as made:
        assert torch.equal(blur(map_, padding=padding), whole)
    assert 0 < made.pixels <= (8 * 19 + 2 * 19 + 2 * 3) * (30 + 2 * 3)


def test_finish_blurs_with_the_chosen_padding() -> None:
    torch.manual_seed(0)
    x = torch.rand(50, 60)
    for padding in ("reflect", "zero"):
        method = create_method("l2bt", **SMALL, blur_padding=padding)
        assert torch.equal(method.finish({"anomaly": x}), blur(x, padding=padding))


def test_the_paper_blurs_the_padded_square_and_crops_then(tmp_path: Path) -> None:
    Image.new("RGB", (1500, 1000)).save(tmp_path / "flat.png")
    sample = Sample("flat.png", tmp_path / "flat.png", None, 0, "good", "test", "bolt")
    method = create_method("l2bt", **SMALL, blur_padding="zero")
    method.predict = lambda images: Prediction({"anomaly": torch.ones(len(images), 4, 4)})
    (item,) = predict(method, [sample], View.parse("whole:64:square"), torch.device("cpu"))
    found = finish(method, item).scores()
    assert found.shape == (1000, 1500)
    for row in (0, 500, 999):
        assert found[row, 750] == pytest.approx(1, abs=1e-5)
        assert found[row, 0] == found[row, -1] == pytest.approx(0.280, abs=5e-4)  # a border of the square as well


@pytest.mark.parametrize("size", [(1500, 1000), (1000, 1500), (1024, 1024)])
def test_a_token_lands_where_it_looked(size: tuple[int, int]) -> None:
    placement = Look.parse("whole:1036:square").place(size)
    side = max(size)
    row, column = 40, 33
    tokens = torch.zeros(1, 74, 74)
    tokens[0, row, column] = 1
    method = create_method("l2bt", **SMALL)
    merged = Look.parse("whole:1036:square").merge(tokens, placement)
    assert merged.shape == size
    peak = divmod(int(method.finish({"anomaly": merged}).argmax()), size[1])
    expected = [(k + 0.5) * side / 74 - (side - n) // 2 for k, n in zip((row, column), size, strict=True)]
    assert abs(peak[0] + 0.5 - expected[0]) <= 1
    assert abs(peak[1] + 0.5 - expected[1]) <= 1


@pytest.mark.parametrize("teacher", ["test_vit", "test_vit3"])
@pytest.mark.parametrize("size", [(160, 160), (64, 64), (112, 240), (320, 48)])
def test_positions_are_resampled_to_any_grid(teacher: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    tokens = create_method("l2bt", **{**SMALL, "teacher": teacher}).teacher
    net = tokens.network
    nn.init.normal_(net.pos_embed)
    grid, prefix = (size[0] // 16, size[1] // 16), net.pos_embed.shape[1] - 100  # pretrained at 10 x 10 patches
    table = net.pos_embed[:, prefix:].reshape(1, 10, 10, -1).permute(0, 3, 1, 2)
    table = functional.interpolate(table, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    fixed = timm.create_model(teacher, num_classes=0, img_size=size)
    positions = torch.cat([net.pos_embed[:, :prefix], table], dim=1)
    fixed.load_state_dict({**net.state_dict(), "pos_embed": positions}, strict=False)
    images = batch(size, 1)
    with torch.no_grad():
        expected = fixed.eval().forward_intermediates(
            (images - tokens.mean) / tokens.std, indices=[3, 5], norm=True, output_fmt="NLC", intermediates_only=True
        )
        for own, other in zip(tokens(images), expected, strict=True):
            torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_attention_never_holds_all_pairs_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = create_method("l2bt", **SMALL).eval()
    plain, calls = functional.scaled_dot_product_attention, []

    def counted(*args: Tensor, **options: object) -> Tensor:
        calls.append(args[0].shape[-2])
        return plain(*args, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    images = batch((128, 160), 1)
    found = map_of(method, images)
    assert calls == [8 * 10 + 1] * len(method.teacher.network.blocks)
    for block in method.teacher.network.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(map_of(method, images), found, atol=1e-5, rtol=1e-5)
    assert len(calls) == len(method.teacher.network.blocks)


@pytest.mark.parametrize(
    "text", ["whole:1036", "whole:1036:square", "tiled:518:112", "whole:518+tiled:518:112", "tiled:1036:224@0.5"]
)
def test_the_papers_teacher_takes_these_views(text: str) -> None:
    with torch.device("meta"):
        method = create_method("l2bt", weights="random")
        view = View.parse(text)
        view.check_multiple(method.multiple, "l2bt")
        for look in view.looks:
            found = method.predict(torch.empty(2, 3, *look.tile)).maps["anomaly"]
            assert found.shape == (2, look.tile[0] // 14, look.tile[1] // 14)


@pytest.mark.parametrize("text", ["whole:96", "whole:96:square", "tiled:96:32", "whole:96+tiled:96:32+tiled:96:32@0.5"])
def test_every_view_gives_a_native_map(text: str) -> None:
    method, _ = fitted(steps=1)
    image = (batch((101, 150), 1)[0].permute(1, 2, 0) * 255).byte().numpy()
    for look in View.parse(text).looks:
        tiles, placement = look.split(image)
        final = method.finish({"anomaly": look.merge(map_of(method, tiles.float() / 255), placement)})
        assert final.shape == (101, 150)
        assert final.isfinite().all()


def test_mistakes_are_named() -> None:
    with pytest.raises(HrbenchError, match="option blur_padding of l2bt is 'edge', expected one of"):
        create_method("l2bt", **SMALL, blur_padding="edge")
    with pytest.raises(HrbenchError, match="steps or epochs, one of them; got 20 and 2"):
        create_method("l2bt", **SMALL, epochs=2)
    with pytest.raises(HrbenchError, match=r"blocks \[3\] of l2bt: expected two"):
        create_method("l2bt", **SMALL, blocks=[3])
