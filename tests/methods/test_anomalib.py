"""The bridge to anomalib; what needs it is skipped without the extra: pip install 'hrbench[anomalib]'."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models import vision_transformer

from hrbench import HrbenchError, create_method, list_methods, method_names
from hrbench._util.resources import methods_package
from hrbench.backbones.bundled import find_bundled
from hrbench.engine import training
from hrbench.engine.training import Fit, learnt_state, seeded
from hrbench.engine.views import View
from hrbench.precision import autocast
from hrbench.registry import all_options, check_options, load_method
from hrbench.testing import StackedNormals, check_method

methods_package()
from hrbench.methods import _anomalib  # noqa: E402
from hrbench.methods._anomalib_bridge import Bridged, Trained  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:Argument embeddings is deprecated:DeprecationWarning"
)  # PatchCore's own
CLASSES = [
    item
    for item in vars(_anomalib).values()
    if isinstance(item, type) and issubclass(item, Bridged) and item not in (Bridged, Trained)
]
needs_anomalib = pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is None, reason="anomalib is not installed: pip install 'hrbench[anomalib]'"
)
RESNET: dict[str, Any] = {"weights": "random", "arguments": {"backbone": "resnet18"}}
TINY: dict[str, Any] = {"weights": "bundled", "input_size": 64}
BRIEF: dict[str, Any] = {"steps": 2, "batch_size": 2}
SMALL: dict[str, dict[str, Any]] = {
    "patchcore": RESNET,
    "padim": {**RESNET, "input_size": 64},
    "anomaly_dino": {"weights": "random"},
    "rad": {**TINY, "arguments": {"backbone": "vit_tiny_patch16_224", "layers": [2, 5]}},
    "dfm": {**RESNET, "input_size": 64},
    "fre": {**BRIEF, "weights": "random", "input_size": 64, "arguments": {"backbone": "resnet18", "input_dim": 1024}},
    "stfpm": {**BRIEF, "weights": "random"},
    "reverse_distillation": {**BRIEF, **RESNET, "input_size": 64},
    "fastflow": {**BRIEF, "weights": "random", "input_size": 64, "arguments": {"flow_steps": 2}},
    "patchflow": {**BRIEF, **RESNET, "input_size": 128},
    "supersimplenet": {**BRIEF, **RESNET},
    "draem": BRIEF,
    "dinomaly": {**BRIEF, "weights": "random", "arguments": {"encoder_name": "vit_small_patch14_dinov2"}},
    "inp_former": {
        **BRIEF, "weights": "random", "input_size": 56, "arguments": {"encoder_name": "vit_small_patch14_dinov2"},
    },
    "l2bt": {**BRIEF, "weights": "random"},
    "general_ad": {
        **BRIEF, **TINY, "arguments": {"backbone": "vit_tiny_patch16_224", "layers": [6], "hidden_dim": 32},
    },
    "foundad": {
        **BRIEF, "weights": "random", "input_size": 56,
        "arguments": {"encoder_name": "dinov2_vit_small_14", "pred_depth": 2},
    },
}  # fmt: skip
SIZES = {"patchflow": 128, "supersimplenet": 128}  # 64 does otherwise
FAST = {"patchcore", "padim", "rad", "dfm", "fre", "stfpm", "fastflow", "general_ad"}


def models(fast: set[str] = FAST, *, trained: bool = False) -> list[Any]:
    """Return the models of the bridge, or those that are trained, as parameters of a test, not fast ones as slow."""
    names = [name for name, options in SMALL.items() if "steps" in options or not trained]
    return [pytest.param(name, marks=[] if name in fast else pytest.mark.slow) for name in names]


def make(name: str, **options: Any) -> Any:
    with seeded(0):
        return create_method(f"anomalib.{name}", **{**SMALL[name], **options})


def noise(size: int, images: int = 4) -> torch.Tensor:
    return torch.rand((images, 3, size, size), generator=torch.Generator().manual_seed(0))


def fitted(method: Any, size: int, checkpoint: Path | None = None, precision: str = "float32") -> Any:
    normals, cpu = StackedNormals(noise(size)), torch.device("cpu")
    with seeded(0):
        method.train()
        fit = Fit(method, held_out=normals, seed=0, device=cpu, checkpoint=checkpoint, precision=precision)
        method.fit(normals, fit)
    return method.eval()


def side(name: str) -> int:
    return SIZES.get(name, 56 if "dino" in str(SMALL[name]) or name in ("l2bt", "anomaly_dino") else 64)


# Without anomalib


@pytest.mark.parametrize("installed", [True, False])
def test_models_are_listed_where_anomalib_is_installed(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    own = importlib.metadata.distribution

    def distribution(name: str) -> Any:
        if name == "anomalib" and not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return own("hrbench" if name == "anomalib" else name)

    monkeypatch.setattr(method_names, "distribution", distribution)
    bridged = {cls.name for cls in CLASSES}
    assert bridged & set(list_methods()) == (bridged if installed else set())
    if not installed:
        with pytest.raises(
            HrbenchError, match=r"'anomalib.padim' needs anomalib, .*pip install 'hrbench\[anomalib\]'$"
        ):
            load_method("anomalib.padim")


def test_listing_and_loading_models_imports_nothing_of_anomalib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anomalib", "lightning"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    for module in ("_anomalib", "_anomalib_bridge"):
        monkeypatch.delitem(sys.modules, f"hrbench.methods.{module}")
    list_methods()
    assert load_method("hrbench.methods._anomalib:Padim").name == "anomalib.padim"


@pytest.mark.parametrize("name", _anomalib.REFUSED)
def test_other_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(HrbenchError, match=f"method '{name}' cannot be run: its? ") as raised:
        load_method(name)
    assert "\n" not in str(raised.value)


def test_a_wrong_name_of_the_family_is_unknown() -> None:
    with pytest.raises(HrbenchError, match=r"unknown method 'anomalib\.cflo'"):
        load_method("anomalib.cflo")


def test_a_class_that_is_named_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anomalib.models", None)
    with pytest.raises(HrbenchError, match=r"anomalib.padim needs anomalib, .*pip install 'hrbench\[anomalib\]'"):
        create_method("hrbench.methods._anomalib:Padim", preset="demo")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_model_has_an_entry_point_and_sound_presets(cls: Any) -> None:
    (point,) = importlib.metadata.entry_points(group="hrbench.methods", name=cls.name)
    assert point.value == f"hrbench.methods._anomalib:{cls.__name__} [anomalib]"
    assert {"paper", "demo"} <= cls.presets.keys()
    for preset in cls.presets.values():
        options = all_options(cls, check_options(cls, cls.name, preset.options))
        view = View.parse(preset.view)
        assert "version" in options  # another release is another run
        if cls.sized:
            assert view.tile == (options["input_size"] or cls.sized,) * 2
        if cls.positional:
            assert view.looks[0].overlap is None
    assert cls.presets["demo"].options.get("weights", "none") in ("bundled", "random", "none")


# With anomalib


@needs_anomalib
@pytest.mark.parametrize("name", models())
def test_contract(name: str) -> None:
    check_method(f"anomalib.{name}", size=SIZES.get(name, 64), **SMALL[name])


@needs_anomalib
@pytest.mark.parametrize("name", models({*FAST, "patchflow"}))
def test_demos_can_be_made(name: str) -> None:
    create_method(f"anomalib.{name}", preset="demo")


@needs_anomalib
def test_every_model_of_anomalib_is_bridged_or_refused() -> None:
    make("padim")  # imports anomalib in the way the bridge does
    names = importlib.import_module("anomalib.models.image").__all__
    assert len(names) == len(CLASSES) + len(_anomalib.REFUSED)
    assert {cls.__name__ for cls in CLASSES} <= set(names)


@needs_anomalib
@pytest.mark.parametrize("name", models({"fastflow", "general_ad"}))
def test_runs_in_bfloat16(name: str) -> None:
    method = fitted(make(name), side(name), precision="bfloat16")
    with torch.no_grad(), autocast(torch.device("cpu"), "bfloat16"):
        found = method.predict(noise(side(name), 2)).maps["anomaly"]
    assert found.dtype == torch.float32
    assert found.isfinite().all()


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@needs_anomalib
@pytest.mark.parametrize("name", models({"stfpm", "general_ad"}, trained=True))
def test_a_killed_fit_continues_to_the_same_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)

    def fit(checkpoint: Path | None, kill_at: int | None = None) -> dict[str, torch.Tensor]:
        method, taken = make(name, steps=6), 0
        real = method.module.training_step

        def step(*arguments: Any) -> Any:
            nonlocal taken
            if taken == kill_at:
                raise Killed
            taken += 1
            return real(*arguments)

        method.module.training_step = step
        state = learnt_state(fitted(method, side(name), checkpoint))
        assert taken == (6 if checkpoint is None else 2)
        return state

    whole = fit(None)
    with pytest.raises(Killed):
        fit(tmp_path / "fit.pt", kill_at=4)
    resumed = fit(tmp_path / "fit.pt")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def rates_of(name: str, steps: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[float]:
    """Return the first group's learning rate at every step of a fit."""
    method, rates = make(name, steps=steps, **options), []
    configure = method.module.configure_optimizers

    def configured() -> Any:
        found = configure()
        optimizer = found[0][0]

        def before(opt: Any, *_: Any) -> None:
            rates.append(opt.param_groups[0]["lr"])

        optimizer.register_step_pre_hook(before)
        return found

    monkeypatch.setattr(method.module, "configure_optimizers", configured)
    fitted(method, side(name))
    return rates


@needs_anomalib
def test_a_schedule_of_steps_moves_with_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = rates_of("dinomaly", 3, monkeypatch, arguments={"encoder_name": "vit_small_patch14_dinov2"})
    assert rates == pytest.approx([0.0, 2e-3 / 99, 2 * 2e-3 / 99])  # 100 steps of warm-up


@needs_anomalib
@pytest.mark.slow
def test_a_schedule_of_epochs_moves_with_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = rates_of("supersimplenet", 20, monkeypatch)  # two steps an epoch: 10 epochs, milestones 8 and 9
    assert rates == pytest.approx([1e-4] * 16 + [4e-5] * 2 + [1.6e-5] * 2)


@needs_anomalib
def test_gradients_are_clipped_as_anomalib_s_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    method, norms = make("dinomaly", steps=1, batch_size=4), []
    optimizers = importlib.import_module("anomalib.models.image.dinomaly.components.optimizer")
    real = optimizers.StableAdamW.step

    def step(self: Any, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return real(self, closure)

    monkeypatch.setattr(optimizers.StableAdamW, "step", step)
    monkeypatch.setattr(
        method.module, "training_step", lambda batch, _: {"loss": 1e3 * method.module.model(batch.image, global_step=0)}
    )
    fitted(method, 56)
    assert norms == pytest.approx([0.1], rel=1e-3)


@needs_anomalib
def test_maps_are_raw_unless_the_blur_is_asked_for() -> None:
    batch = noise(64, 2)
    for name, grid in (("patchcore", 8), ("padim", 64)):
        sharp, blurred = (fitted(make(name, blur=blur), 64) for blur in (False, True))
        with torch.no_grad():
            raw, soft = (method.predict(batch).maps["anomaly"] for method in (sharp, blurred))
            own = blurred.module.model((batch - blurred.mean) / blurred.std).anomaly_map[:, 0]
        assert raw.shape == (2, grid, grid)
        assert torch.equal(soft, own)
        assert raw.std() > soft.std()


@needs_anomalib
@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("supersimplenet", 128), ("draem", 64)])
def test_maps_that_saturate_are_taken_as_logits(name: str, size: int) -> None:
    method = make(name) if name == "draem" else make(name, blur=True)
    method.eval()
    batch = noise(size, 2)
    with torch.no_grad():
        logits = method.predict(batch).maps["anomaly"]
        own = method.module.model((batch - method.mean) / method.std).anomaly_map.reshape(logits.shape)
    assert torch.allclose(logits.sigmoid(), own, atol=1e-6)


@needs_anomalib
def test_weights_come_by_hrbench_s_rules(tmp_path: Path) -> None:
    bundled = make("padim", weights="bundled")
    (frozen,) = bundled.restored()
    assert bundled.restored()[frozen].startswith("resnet18 bundled sha256:")
    assert tuple(bundled.mean.flatten().tolist()) == find_bundled("resnet18").mean
    assert not any(key.startswith(frozen) for key in learnt_state(bundled))
    random = make("padim")
    assert random.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(bundled.get_submodule(frozen).state_dict(), path)
    given = make("padim", weights=str(path))
    assert given.restored()[frozen].startswith("resnet18 file:mine.safetensors sha256:")
    with pytest.raises(HrbenchError, match="no pretrained weights for resnet18"):
        make("padim", weights="pretrained")
    with pytest.raises(HrbenchError, match="no bundled weights for wide_resnet50_2"):
        make("padim", weights="bundled", arguments={"backbone": "wide_resnet50_2"})


@needs_anomalib
@pytest.mark.slow
def test_nothing_of_timm_or_of_the_environment_stays_changed() -> None:
    before = vision_transformer.resample_abs_pos_embed, dict(os.environ)
    make("rad")
    assert vision_transformer.resample_abs_pos_embed is before[0]
    code = (
        "import os, hrbench, timm\nbefore = dict(os.environ), timm.create_model\n"
        "hrbench.create_method('anomalib.padim', preset='demo')\n"
        "assert before == (dict(os.environ), timm.create_model)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_anomalib
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "padim",
            {"arguments": {"backbon": "resnet18"}},
            r"unknown argument of anomalib.padim 'backbon'; did you mean",
        ),
        ("padim", {"arguments": {"pre_trained": False}}, "unknown argument of anomalib.padim 'pre_trained'"),
        ("padim", {"arguments": {"n_features": 999}}, "cannot be made with arguments .*: .* 0 < n_features <= 448"),
        ("padim", {"input_size": 100}, "input_size 100 of anomalib.padim: expected a multiple of 32"),
        ("padim", {"version": "2.6.0"}, r"version of anomalib.padim is '2\.6\.0', expected that of the installed"),
        ("fre", {"arguments": {"backbone": "resnet18"}}, "argument input_dim of anomalib.fre is 65536, expected 1024"),
        (
            "reverse_distillation",
            {"arguments": {"anomaly_map_mode": "mean"}},
            "anomaly_map_mode .*Known: add, multiply",
        ),
        ("draem", {"textures": "nowhere"}, "textures of anomalib.draem is 'nowhere', expected a folder"),
        ("stfpm", {"epochs": 3}, r"anomalib\.stfpm: expected steps or epochs, one of them; got 2 and 3"),
    ],
)
def test_mistakes_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HrbenchError, match=message):
        make(name, **options)


@needs_anomalib
def test_tiles_are_refused_where_positions_are_learnt() -> None:
    method = fitted(make("padim"), 64)
    with torch.no_grad():
        method.predict_inputs(noise(64, 2), [1, 1])
        with pytest.raises(HrbenchError, match="expected images seen whole, for example --view whole:64"):
            method.predict_inputs(noise(64, 2), [4, 4])


@needs_anomalib
@pytest.mark.parametrize("name", ["patchcore", "rad"])
def test_a_second_fit_begins_anew(name: str) -> None:  # as in a rehearsal
    method = fitted(make(name), 64)
    first = learnt_state(method)
    second = learnt_state(fitted(method, 64))
    assert all(value.shape == second[key].shape for key, value in first.items())


@needs_anomalib
def test_a_model_that_gives_no_map_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make("dfm").eval()
    monkeypatch.setattr(type(method), "_map", lambda self, images: None)
    with torch.no_grad(), pytest.raises(HrbenchError, match=r"anomalib\.dfm gives no anomaly map"):
        method.predict(noise(64, 1))
