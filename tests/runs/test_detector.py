"""A fitted method in use: the bits of the run, any source of images, and what cannot be made as it was fitted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import write_tree
from PIL import Image
from safetensors.torch import load_file, save_file

import hrbench
from hrbench import Detector, HrbenchError, load_dataset, load_protocol
from hrbench.imaging import find_components, read_image
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job
from hrbench.runs.store import Run

CPU = torch.device("cpu")
DRAWING = Path(__file__).parents[1] / "drawing_adapter.py"  # whose predictions are random


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More test images than a chunk has."""
    return write_tree(tmp_path_factory.mktemp("data") / "parts", train=12, good=8, bad=12, size=(40, 44))


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    job = make_job(
        load_dataset("folder", root).categories[0], str(DRAWING), preset="native", view="tiled:16:4+whole:16"
    )
    protocols = [load_protocol("native@1")]  # whose threshold takes a single held-out image
    return run_job(job, tmp_path_factory.mktemp("runs"), protocols, device=CPU, batch_size=5, save_maps=True)


@pytest.fixture
def detector(run: Run) -> Detector:
    return Detector.load(run.folder, method=str(DRAWING), device="cpu")


def maps_of(run: Run) -> dict[str, np.ndarray]:
    maps = run.folder / "maps/bolt/test"
    return {path.relative_to(maps).with_suffix("").as_posix(): tifffile.imread(path) for path in maps.rglob("*.tiff")}


def test_the_maps_are_those_of_the_run_to_the_last_bit(run: Run, root: Path) -> None:
    before = torch.get_rng_state()
    expected, images = maps_of(run), run.images[run.images["protocol"] == "native"].set_index("image")
    verdicts = list(hrbench.load_run(run.folder).predict(root / "bolt/test", method=str(DRAWING), device="cpu"))
    assert [verdict.image.removesuffix(".png") for verdict in verdicts] == sorted(expected)
    for verdict in verdicts:
        assert np.array_equal(verdict.anomaly_map, expected[verdict.image.removesuffix(".png")])
        assert verdict.score == images.loc[f"bolt/test/{verdict.image}", "score"]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_meanwhile_changes_no_bit(run: Run, root: Path, detector: Detector) -> None:
    expected = maps_of(run)
    for verdict in detector.predict(root / "bolt/test"):
        torch.manual_seed(torch.randint(1000, ()).item())
        assert not torch.are_deterministic_algorithms_enabled()
        assert np.array_equal(verdict.anomaly_map, expected[verdict.image.removesuffix(".png")])


def test_a_verdict_says_what_reaches_the_threshold(run: Run, root: Path, detector: Detector) -> None:
    assert detector.threshold == run.about.threshold.value
    found = list(detector.predict(root / "bolt/test/dent"))
    assert any(verdict.called for verdict in found)
    for verdict in found:
        mask = verdict.anomaly_map >= np.float32(detector.threshold)
        assert verdict.called == mask.any()
        assert len(verdict.components) == find_components(mask).areas.size
        assert sum(part.area for part in verdict.components) == mask.sum()
        for part in verdict.components:
            box = verdict.anomaly_map[part.top : part.bottom, part.left : part.right]
            assert part.score == box[mask[part.top : part.bottom, part.left : part.right]].max()


def test_any_source_of_images_gives_the_same(root: Path, detector: Detector) -> None:
    paths = sorted((root / "bolt/test/dent").iterdir())
    arrays = [read_image(path) for path in paths]
    buffer = np.empty_like(arrays[0])

    def frames() -> Iterator[np.ndarray]:
        for array in arrays:  # as a camera does that has one buffer
            buffer[:] = array
            yield buffer

    expected = [verdict.anomaly_map for verdict in detector.predict(root / "bolt/test/dent")]
    for images in (paths, [str(path) for path in paths], arrays, np.stack(arrays), frames(), iter(paths)):
        maps = [verdict.anomaly_map for verdict in detector.predict(images)]
        assert all(np.array_equal(*pair) for pair in zip(maps, expected, strict=True))
    (alone,) = detector.predict(arrays[0])
    assert np.array_equal(alone.anomaly_map, next(detector.predict(paths[0])).anomaly_map)


def test_a_generator_is_drawn_from_as_images_are_needed(root: Path, detector: Detector) -> None:
    image, drawn = read_image(root / "bolt/test/good/000.png"), []
    verdicts = detector.predict(drawn.append(number) or image for number in range(1000))
    next(verdicts)
    assert len(drawn) < 50
    verdicts.close()


def test_a_bad_image_is_told_and_the_others_go_on(root: Path, detector: Detector, tmp_path: Path) -> None:
    shutil.copytree(root / "bolt/test/good", tmp_path / "new")
    (tmp_path / "new/003.png").write_bytes(b"no image")
    told = []
    found = list(detector.predict(tmp_path / "new", failed=lambda sample, error: told.append((sample.id, str(error)))))
    assert [verdict.image for verdict in found] == [f"{number:03d}.png" for number in range(8) if number != 3]
    ((name, words),) = told
    assert name == "003.png"
    assert "not a readable image" in words
    with pytest.raises(HrbenchError, match=r"003\.png: not a readable image"):
        list(detector.predict(tmp_path / "new"))


def test_another_view_has_no_threshold(run: Run, root: Path) -> None:
    detector = Detector.load(run.folder, method=str(DRAWING), view="whole:16", device="cpu")
    (verdict,) = detector.predict(root / "bolt/test/dent/004.png")
    assert (verdict.called, verdict.threshold, verdict.components) == (None, None, ())
    assert detector.without == "no threshold: it was set through tiled:16:4+whole:16, not through whole:16"
    with pytest.raises(HrbenchError, match="how these views are fused was not measured by the fit"):
        Detector.load(run.folder, method=str(DRAWING), view="whole:16+whole:16:square", device="cpu")


def test_a_saved_detector_gives_the_same(run: Run, root: Path, detector: Detector, tmp_path) -> None:
    saved = detector.save(tmp_path / "saved")
    assert sorted(path.name for path in saved.iterdir()) == ["detector.json", "evidence", "weights.safetensors"]
    again = Detector.load(saved, method=str(DRAWING), device="cpu")
    assert (again.threshold, again.scale) == (detector.threshold, detector.scale)
    pairs = zip(again.predict(root / "bolt/test"), detector.predict(root / "bolt/test"), strict=True)
    assert all(np.array_equal(own.anomaly_map, other.anomaly_map) for own, other in pairs)
    with pytest.raises(HrbenchError, match="saved: exists already, expected the path of a new folder"):
        detector.save(saved)


def test_a_method_is_fitted_on_a_folder_as_a_run_fits_it(run: Run, root: Path, tmp_path: Path) -> None:
    fitted = hrbench.fit(str(DRAWING), root / "bolt/train", view="tiled:16:4+whole:16", protocol="native@1",
                         device="cpu", batch_size=5)  # fmt: skip
    assert fitted.threshold == run.about.threshold.value
    expected = maps_of(run)
    for verdict in fitted.predict(root / "bolt/test"):
        assert np.array_equal(verdict.anomaly_map, expected[verdict.image.removesuffix(".png")])
    again = Detector.load(fitted.save(tmp_path / "mine"), method=str(DRAWING), device="cpu")
    assert again.threshold == fitted.threshold
    assert np.array_equal(load_file(tmp_path / "mine/weights.safetensors")["colour"], fitted.method.colour)


def test_a_threshold_that_cannot_be_promised_is_none(root: Path, toy: str) -> None:
    fitted = hrbench.fit(toy, root / "bolt/train/good", options={"steps": 2}, device="cpu")
    assert fitted.threshold is None
    assert fitted.without == "no threshold: 1 normal image held out, too few for a promise"
    low, high = fitted.scale
    assert low < high


def test_images_that_cannot_be_fitted_on_are_named(toy: str, tmp_path: Path) -> None:
    with pytest.raises(HrbenchError, match=r"gone\.png: no such file"):
        hrbench.fit(toy, [tmp_path / "gone.png", tmp_path / "too.png"])
    Image.new("L", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(HrbenchError, match="1 normal training image, expected at least 2"):
        hrbench.fit(toy, tmp_path)


def test_a_method_that_is_not_as_it_was_fitted_is_refused(run: Run, tmp_path: Path, caplog) -> None:
    with pytest.raises(HrbenchError, match=r"the method is the adapter drawing_adapter\.py, expected where it lies"):
        Detector.load(run.folder)
    with pytest.raises(HrbenchError, match="unknown option of drawing_adapter 'stride'; did you mean 'strides'"):
        Detector.load(run.folder, method=str(DRAWING), options={"stride": 1})
    with pytest.raises(HrbenchError, match=r"option strides of drawing_adapter is \[1\], expected \(?\[?1, 2"):
        Detector.load(run.folder, method=str(DRAWING), options={"strides": (1,)})
    changed = tmp_path / "drawing_adapter.py"
    changed.write_text(DRAWING.read_text() + "\n# another line\n")
    Detector.load(run.folder, method=str(changed), device="cpu")
    assert "the source of drawing_adapter has changed since the fit" in caplog.text


def test_what_is_damaged_or_missing_is_named(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    state = load_file(copy / "weights.safetensors")
    save_file({key: value + 1 for key, value in state.items()}, copy / "weights.safetensors")
    with pytest.raises(HrbenchError, match=r"weights\.safetensors: is not as it was written"):
        Detector.load(copy, method=str(DRAWING))
    (copy / "weights.safetensors").unlink()
    with pytest.raises(HrbenchError, match=r"weights\.safetensors: no such file, expected what the method has learnt"):
        Detector.load(copy, method=str(DRAWING))
    with pytest.raises(HrbenchError, match="nowhere: no such folder, expected one with runs"):
        hrbench.load_run(tmp_path / "nowhere")
    shutil.copytree(copy, tmp_path / "other")
    with pytest.raises(HrbenchError, match="2 runs in this folder, expected that of one"):
        hrbench.load_run(tmp_path)


def test_a_file_of_weights_has_to_be_found_again(root: Path, toy: str, tmp_path: Path) -> None:
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"1")
    fitted = hrbench.fit(toy, root / "bolt/train", options={"steps": 2, "weights": str(weights)}, device="cpu")
    saved = fitted.save(tmp_path / "saved")
    with pytest.raises(HrbenchError, match=r"option weights of toy_adapter was 'mine\.pth sha256:.*--set weights=PATH"):
        Detector.load(saved, method=toy)
    Detector.load(saved, method=toy, options={"weights": str(weights)}, device="cpu")
    weights.write_bytes(b"2")
    with pytest.raises(HrbenchError, match=r"option weights of toy_adapter is 'mine\.pth sha256:.* as it was fitted"):
        Detector.load(saved, method=toy, options={"weights": str(weights)})
