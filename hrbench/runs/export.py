"""A fitted method as files that run without hrbench: graphs of torch.export or ONNX, and what surrounds them as data.

A graph goes from one input of the view, (1, 3, h, w) in [0, 1], to the method's named maps
(:meth:`Method.exported_maps`); a second one is its ``finish``, where that does more than hand a map on. Cutting into
tiles, merging, threshold and boxes are plain arithmetic: a JSON file says how, and ``run_exported.py``, written beside
it, does it with numpy. What was written is run on images and compared with the original before it is kept.

``torch.export.load`` may run what is in a file. Here it only reads what this process has just written.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hrbench._util.disk import explaining
from hrbench._util.guard import guarded
from hrbench._util.received import file_digest
from hrbench.data.loose import Images, loose_samples
from hrbench.data.sample import ArraySample, Sample
from hrbench.engine.views import View
from hrbench.errors import HrbenchError
from hrbench.imaging import read_image
from hrbench.method import Method
from hrbench.runs import run_exported
from hrbench.runs.environment import environment

if TYPE_CHECKING:
    from hrbench.runs.detector import Detector, Verdict

__all__ = ["FORMATS", "Agreement", "Exported", "apart", "export"]

FORMATS = (".pt2", ".onnx")
RUNNER = "run_exported.py"
_NEEDED = ("onnx", "onnxscript", "onnxruntime")

# Of a score, in units of its distance from the median of normal pixels, at least of the threshold's: rounding, and one
# grey level of what pillow resizes otherwise than torch does, or the eight bits of bfloat16.
_SAME, _RESIZED = 1e-4, 0.05


@dataclass(frozen=True)
class Agreement:
    """How an exported method agrees with the original on images.

    Attributes
    ----------
    images, alarms : int
        How many were compared, and how many of them alarm; None without a threshold.
    difference : float
        The largest of any pixel's scores, see ``tolerance``.
    score_difference : float
        The largest of any image score, likewise.
    tolerance : float
        What the largest may be, in units of the score's distance from the median score of normal pixels, at least of
        the threshold's.
    """

    images: int
    alarms: int | None
    difference: float
    score_difference: float
    tolerance: float


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    files : tuple of Path
        The graphs, the JSON that describes them, and the script that runs them.
    agreement : Agreement
    size : (int, int) or None
        Height and width of the maps, and so of the images, that ``finish`` takes; None for any of at least 16 pixels.
    """

    files: tuple[Path, ...]
    agreement: Agreement
    size: tuple[int, int] | None


class _Maps(nn.Module):
    """From an input to the maps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.method.exported_maps(batch).values())


class _Finish(nn.Module):
    """From merged maps to the anomaly map."""

    def __init__(self, method: Method, names: Sequence[str]) -> None:
        super().__init__()
        self.held, self.names = (method,), names  # no submodule: the graph keeps only the tensors that it uses

    def forward(self, *maps: Tensor) -> tuple[Tensor]:
        return (self.held[0].finish(dict(zip(self.names, maps, strict=True))),)


def export(detector: Detector, output: Path, images: Images) -> Exported:
    """Write a detector as graphs, and check that they say of images what it says.

    See :meth:`hrbench.Detector.export`.
    """
    if output.suffix not in FORMATS:
        raise HrbenchError(f"{output}: expected a name that ends in {' or '.join(FORMATS)}")
    name = detector.about.method.name
    _refuse(detector, output.suffix)
    targets = [output, output.with_suffix(f".finish{output.suffix}"), output.with_name(f"{output.name}.json")]
    for path in targets:
        if path.exists():
            raise HrbenchError(f"{path}: exists already, expected a new name")
    _check_runner(output.with_name(RUNNER))
    samples = list(loose_samples(images))
    originals = list(detector.verdicts(samples))
    if not originals:
        raise HrbenchError("no image to compare with the original, expected at least one")

    method = copy.deepcopy(detector.method).cpu().eval()  # a copy is not compiled
    with explaining(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=".export-") as scratch:
            graph, finish, sidecar = (Path(scratch) / path.name for path in targets)
            names = _write_maps(method, name, detector.view, graph)
            height, width = detector.view.looks[0].place(originals[0].anomaly_map.shape).padded
            size = (height, width) if method.finish_padded else originals[0].anomaly_map.shape
            fixed = _write_finish(method, name, names, (size[0], size[1]), finish)
            said = _sidecar(detector, names, graph, finish if finish.exists() else None, fixed)
            sidecar.write_text(json.dumps(said), encoding="utf-8")
            with _traced(name, "maps that can be read again"):
                exported = run_exported.Detector(sidecar)
            agreement = _compare(detector, exported, samples, originals)
            said["compared"] = vars(agreement)
            sidecar.write_text(json.dumps(said, indent=1), encoding="utf-8")
            pairs = zip((graph, finish, sidecar), targets, strict=True)
            written = [(made, path) for made, path in pairs if made.exists()]
            for made, path in written:  # the description last
                made.replace(path)
        runner = output.with_name(RUNNER)
        if not runner.exists():
            shutil.copyfile(run_exported.__file__, runner)
    return Exported((*(path for _, path in written), runner), agreement, fixed)


def _refuse(detector: Detector, suffix: str) -> None:
    """Raise an error for what no graph, or no arithmetic of the script, can repeat."""
    about, method = detector.about, detector.method
    if method.not_exported:
        raise HrbenchError(f"{about.method.name} is not exported: {method.not_exported}")
    for look in detector.view.looks:
        if look.filter == "bilinear-aliased":
            raise HrbenchError(
                f"view {look.text!r} is not exported: pillow, which resizes images where the graphs run, has no "
                "aliased filter; expected a fit through another view"
            )
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if suffix == ".onnx" and missing:
        raise HrbenchError(f"an .onnx needs {', '.join(missing)}: pip install 'hrbench[export]', or write a .pt2")


def _check_runner(path: Path) -> None:
    """Raise an error for another file of the name of the script: it may be changed by hand, or for another version."""
    if path.exists() and path.read_bytes() != Path(run_exported.__file__).read_bytes():
        raise HrbenchError(f"{path}: is not this version's; expected another folder, or no such file")


def _write_maps(method: Method, name: str, view: View, path: Path) -> tuple[str, ...]:
    """Write the graph from an input to the maps; return their names."""
    example = torch.rand((1, 3, *view.tile), generator=torch.Generator().manual_seed(0))
    with _traced(name, "predict"):
        names = tuple(method.exported_maps(example))
        _write(torch.export.export(_Maps(method), (example,), strict=False), path)
    return names


def _write_finish(
    method: Method, name: str, names: tuple[str, ...], size: tuple[int, int], path: Path
) -> tuple[int, int] | None:
    """Write the graph of ``finish`` for maps of any size, or else of one, which is returned.

    Where it only hands on a map, nothing is written.
    """
    if len(names) == 1 and type(method).finish is Method.finish:
        return None
    fixed = None
    maps = tuple(torch.rand(size, generator=torch.Generator().manual_seed(i)) for i in range(len(names)))
    sides = {0: torch.export.Dim("height", min=16, max=1 << 16), 1: torch.export.Dim("width", min=16, max=1 << 16)}
    module = _Finish(method, names)
    with _traced(name, "finish"):
        try:
            program = torch.export.export(module, maps, dynamic_shapes=((sides,) * len(maps),), strict=False)
        except Exception:  # torch raises a dozen kinds for what depends on the size
            program, fixed = torch.export.export(module, maps, strict=False), size
        if len(names) == 1 and not any(node.op == "call_function" for node in program.graph.nodes):
            return None
        _write(program, path)
    return fixed


def _write(program: torch.export.ExportedProgram, path: Path) -> None:
    if path.suffix == ".pt2":
        torch.export.save(program, path)
    else:
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)


@contextmanager
def _traced(name: str, call: str) -> Iterator[None]:
    """Let torch look into a method without grad; what it cannot take of it is one error, and it says nothing else."""
    try:
        with guarded(f"{name}: {call}"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except HrbenchError:
        raise
    except Exception as error:  # torch raises a dozen kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HrbenchError(
            f"{name} is not exported: torch cannot make a graph of its {call} ({reason}); expected tensors from end to "
            "end, whose values decide nothing (Method.exported_maps may leave out what only decides)"
        ) from error


def _sidecar(
    detector: Detector, names: Sequence[str], graph: Path, finish: Path | None, fixed: tuple[int, int] | None
) -> dict[str, Any]:
    """Return all that surrounds the graphs."""
    about, spec = detector.about, detector.about.evidence[0].collection
    looks = [
        {key: getattr(look, key) for key in ("text", "tile", "overlap", "scale", "square", "filter")}
        for look in detector.view.looks
    ]
    return {
        "schema": run_exported.SCHEMA,
        "hrbench": environment()["hrbench"],
        "method": {"name": about.method.name, "title": about.method.title, "paper": about.method.paper},
        "weights": about.method.weights,
        "weights_licence": about.method.weights_licence,
        "run": about.run,
        "fitted_on": {"dataset": about.dataset.name, "category": about.dataset.category},
        "view": detector.view.text,
        "looks": looks,
        "fusion": about.fusion,
        "input": "(1, 3, h, w) float32, RGB in [0, 1]: what the backbone normalises is normalised in the graph",
        "predict": {**_file(graph), "outputs": list(names)},
        "finish": None if finish is None else {**_file(finish), "inputs": list(names), "size": fixed},
        "finish_padded": detector.method.finish_padded,
        "image_score": spec.rule,
        "connectivity": spec.connectivity,
        "threshold": {
            "value": detector.threshold,
            "rule": about.threshold.rule,
            "promise": detector.promise,
            "normal_images": about.threshold.normal_images,
        },
    }


def _file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": file_digest(path), "bytes": path.stat().st_size}


def _compare(
    detector: Detector, exported: run_exported.Detector, samples: Sequence[Sample], originals: Sequence[Verdict]
) -> Agreement:
    """Run on images what was written; an error where it does not say what the original says."""
    resizes = any(look.overlap is None or look.scale != 1 for look in detector.view.looks)
    tolerance = _RESIZED if resizes or detector.about.precision != "float32" else _SAME
    worst = of_score = 0.0
    for sample, original in zip(samples, originals, strict=True):
        pixels = sample.pixels if isinstance(sample, ArraySample) else read_image(sample.image)
        try:
            map_ = exported.anomaly_map(pixels)
        except Exception as error:  # torch and onnxruntime raise their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise HrbenchError(f"{detector.about.method.name} is not exported: {sample.id}: {reason}") from error
        found = exported.verdict(map_)
        difference = apart(detector, map_, original.anomaly_map)
        score = apart(detector, np.float32(found["score"]), np.float32(original.score), original.anomaly_map)
        worst, of_score = max(worst, difference), max(of_score, score)
        if found["alarm"] != original.called or not max(difference, score) <= tolerance:
            raise HrbenchError(
                f"{detector.about.method.name} is not exported: {sample.id}: the graph's verdict is "
                f"{_word(found['alarm'])} at score {found['score']:.6g} and the original's {_word(original.called)} at "
                f"{original.score:.6g}, and maps differ by {difference:.2g}, expected equal verdicts and at most "
                f"{tolerance:g}"
            )
    alarms = None if detector.threshold is None else sum(bool(original.called) for original in originals)
    return Agreement(len(samples), alarms, worst, of_score, tolerance)


def _word(alarm: bool | None) -> str:
    return {True: "an alarm", False: "no alarm", None: "none"}[alarm]


def apart(detector: Detector, found: Any, original: Any, map_: npt.NDArray[np.float32] | None = None) -> float:
    """Return the largest difference in units of the score's distance from normal, at least of the threshold's."""
    map_ = original if map_ is None else map_
    low, high = detector.scale or (float(np.median(map_)), float(map_.max()))
    unit = np.maximum(np.abs(original - np.float32(low)), max(float(high - low), 1e-30))
    return float(np.max(np.abs(found - original) / unit))
