"""A fitted method as a graph: the same maps and verdicts through the script that is written beside it, or a refusal."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers import BUILT_IN, SMALL_METHODS
from PIL import Image

import hrbench
from hrbench import Detector, HrbenchError
from hrbench.cli import main
from hrbench.engine.views import View
from hrbench.imaging import find_components, read_image
from hrbench.runs import export as exporting
from hrbench.runs import run_exported

NO_ONNX = not all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(NO_ONNX, reason="needs hrbench[export]: onnx, onnxscript and onnxruntime")


PARTED = str(Path(__file__).parents[1] / "parted_adapter.py")  # two maps, and a finish of its own


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise so strong that a grey level, by which filters round differently, is little; black squares in three."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for index in range(65):
        pixels = np.clip(rng.normal(140, 40, (40, 44, 3)), 0, 255).astype(np.uint8)
        path = root / ("bolt/train" if index < 60 else "bolt/test") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index >= 62:
            pixels[10:20, 12:24] = 0
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def detector(root: Path) -> Detector:
    return hrbench.fit(PARTED, root / "bolt/train", device="cpu")


def written(files: tuple[Path, ...]) -> run_exported.Detector:
    """Return the detector as the script has it that was written, not the package."""
    spec = importlib.util.spec_from_file_location("written_script", files[-1])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.Detector(files[-2])


@pytest.mark.filterwarnings("ignore")  # torch's own, where it loads a graph
@pytest.mark.parametrize("view", ["tiled:16:4", "tiled:16:4@0.5", "whole:24x32", "whole:16:square:bilinear",
                                  "tiled:64:8", "tiled:16:4+whole:16"])  # fmt: skip
def test_the_script_says_what_the_method_says(root: Path, view: str, tmp_path: Path) -> None:
    detector = hrbench.fit(PARTED, root / "bolt/train", view=view, device="cpu")
    assert detector.threshold is not None
    found = detector.export(tmp_path / "bolt.pt2", root / "bolt/test")
    assert [path.name for path in found.files] == ["bolt.pt2", "bolt.finish.pt2", "bolt.pt2.json", "run_exported.py"]
    assert sorted(tmp_path.iterdir()) == sorted(found.files)
    assert found.agreement.images == 5
    assert found.agreement.alarms
    script = written(found.files)
    for verdict in detector.predict(root / "bolt/test"):
        map_ = script.anomaly_map(run_exported.read_image(root / "bolt/test" / verdict.image))
        own = script.verdict(map_)
        assert np.abs(map_ - verdict.anomaly_map).max() <= found.agreement.tolerance * verdict.anomaly_map.max()
        assert own["alarm"] == verdict.called
        assert own["score"] == pytest.approx(verdict.score, rel=found.agreement.tolerance)
        if "tiled" in view and "@" not in view and "+" not in view:
            assert [list(part.values())[:5] for part in own["components"]] == [
                [part.left, part.top, part.right, part.bottom, part.area] for part in verdict.components
            ]


def test_the_description_says_what_surrounds_the_graph(detector: Detector, root: Path, tmp_path: Path) -> None:
    found = detector.export(tmp_path / "bolt.pt2", root / "bolt/test")
    said = json.loads(found.files[-2].read_text())
    assert said["looks"] == [{"text": "tiled:16:4", "tile": [16, 16], "overlap": 4, "scale": 1.0, "square": False,
                              "filter": "bicubic"}]  # fmt: skip
    assert said["threshold"]["value"] == detector.threshold
    assert said["threshold"]["promise"] == (
        "an unseen good image, like the 19 held-out normal images, alarms with a probability of at most 0.05"
    )
    assert said["image_score"] == "max"
    assert said["predict"]["outputs"] == ["fine", "coarse"]
    assert said["finish"]["size"] is None
    assert said["compared"]["images"] == 5
    found.files[0].write_bytes(b"another graph")
    with pytest.raises(ValueError, match=r"bolt\.pt2: is not the file that was exported"):
        run_exported.Detector(found.files[-2])


def test_the_script_needs_nothing_of_hrbench() -> None:
    tree = ast.parse(Path(run_exported.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert foreign == {"numpy", "PIL", "onnxruntime", "torch"}


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_onnx(detector: Detector, root: Path, tmp_path: Path, capsys) -> None:
    fitted = hrbench.fit("gaussian", root / "bolt/train", preset="demo", device="cpu").save(tmp_path / "fitted")
    command = ["export", str(fitted), "--images", str(root / "bolt/test"), "--output", str(tmp_path / "to/bolt.onnx")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "compared on 5 images: all verdicts equal" in said
    assert "run_exported.py" in said
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"bolt.onnx", "bolt.onnx.json", "run_exported.py"}
    assert main(command) == 2
    assert "bolt.onnx: exists already, expected a new name" in capsys.readouterr().err


def test_what_cannot_be_exported_says_why(detector: Detector, root: Path, tmp_path: Path, monkeypatch) -> None:
    images, output = root / "bolt/test", tmp_path / "to/bolt.pt2"
    cases: list[tuple[str, str, object]] = [
        (r"maps differ by .*expected equal verdicts", "exported_maps",
         lambda self, batch: {name: 2 * item for name, item in self.predict(batch).maps.items()}),
        (r"torch cannot make a graph of its predict", "exported_maps",
         lambda self, batch: self.predict(batch + float(batch.numpy().max())).maps),
        ("parted_adapter is not exported: it learns while it predicts", "not_exported",
         "it learns while it predicts"),
    ]  # fmt: skip
    for message, name, value in cases:
        with monkeypatch.context() as patch:
            patch.setattr(type(detector.method), name, value)
            with pytest.raises(HrbenchError, match=message):
                detector.export(output, images)
        assert not list(output.parent.iterdir()) if output.parent.exists() else True
    aliased = Detector(detector.about, detector.method, None, detector.device,
                       view=View.parse("whole:16:bilinear-aliased"))  # fmt: skip
    with pytest.raises(HrbenchError, match="'whole:16:bilinear-aliased' is not exported: pillow"):
        aliased.export(output, images)
    with pytest.raises(HrbenchError, match=r"expected a name that ends in \.pt2 or \.onnx"):
        detector.export(tmp_path / "bolt.pth", images)
    (tmp_path / "run_exported.py").write_text("# mine")
    with pytest.raises(HrbenchError, match=r"run_exported\.py: is not this version's"):
        detector.export(tmp_path / "bolt.pt2", images)
    monkeypatch.setattr(exporting, "find_spec", lambda package: None)
    with pytest.raises(HrbenchError, match=r"an \.onnx needs onnx, onnxscript, onnxruntime: pip install 'hrbench"):
        detector.export(tmp_path / "to/bolt.onnx", images)


def test_a_finish_that_depends_on_the_size_is_kept_for_one_size(
    detector: Detector, root: Path, tmp_path: Path, monkeypatch
) -> None:
    cls = type(detector.method)
    plain = cls.finish
    monkeypatch.setattr(cls, "finish", lambda self, maps: plain(self, maps) * float(len(maps["fine"])))
    found = detector.export(tmp_path / "bolt.pt2", root / "bolt/test")
    assert json.loads(found.files[-2].read_text())["finish"]["size"] == [40, 44]
    with pytest.raises(ValueError, match="maps of 40x40, expected 40x44 as exported"):
        run_exported.Detector(found.files[-2]).anomaly_map(np.zeros((40, 40, 3), np.uint8))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_components_are_those_of_the_suite(connectivity: int) -> None:
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (9, 1), (17, 23), (40, 40)):
        for share in (0.0, 0.1, 0.4, 0.6, 1.0):
            map_ = (rng.random(size) + (rng.random(size) < share)).astype(np.float32)
            own, expected = run_exported.components(map_, 1.0, connectivity), find_components(map_ >= 1, connectivity)
            assert [part["area"] for part in own] == expected.areas.tolist()
            boxes = [[part[side] for side in ("top", "left", "bottom", "right")] for part in own]
            assert boxes == expected.boxes.tolist()
            starts = np.cumsum(expected.areas) - expected.areas
            highest = np.maximum.reduceat(map_.ravel()[expected.pixels], starts).tolist() if own else []
            assert [part["score"] for part in own] == highest


def test_images_are_read_as_the_suite_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (9, 7), np.uint8), rng.integers(0, 256, (9, 7, 3), np.uint8)
    alpha = Image.fromarray(np.dstack([colour, grey]))
    kinds = {"l.png": Image.fromarray(grey), "rgb.jpg": Image.fromarray(colour), "rgba.png": alpha,
             "la.png": alpha.convert("LA"), "p.png": Image.fromarray(colour).convert("P"),
             "1.png": Image.fromarray(grey).convert("1"), "cmyk.jpg": Image.fromarray(colour).convert("CMYK"),
             "i16.png": Image.fromarray(grey.astype(np.uint16) * 257), "rgb.tif": Image.fromarray(colour)}  # fmt: skip
    for name, image in kinds.items():
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "rgb.jpg" else 1
        image.save(tmp_path / name, exif=exif)
        found, expected = run_exported.read_image(tmp_path / name), read_image(tmp_path / name)
        assert found.dtype == expected.dtype, name
        assert np.array_equal(found, expected), name
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif: pixels of another type"):
        run_exported.read_image(tmp_path / "f.tif")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=needs_onnx)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_is_exported(name: str, suffix: str, root: Path, tmp_path: Path) -> None:
    options = dict(SMALL_METHODS.get(name, {}))
    preset = options.pop("preset", "demo")
    detector = hrbench.fit(name, root / "bolt/train", preset=preset, view="tiled:64:16", options=options, device="cpu")
    found = detector.export(tmp_path / f"own{suffix}", root / "bolt/test")
    assert found.agreement.images == 5
