"""What packing maps for the server of MVTec AD 2 takes, and what float16 costs on which scale.

    python tools/bench_submission.py [--images 4 20 40] [--size 2048 2448] [--output results/bench_submission.md]

A counterfeit of one object, with private images of so many pixels whose masks are known here, and a method that learns
two numbers: the darkness of blocks of 4 x 4 pixels, in standard deviations of normal blocks, as an exponential, so that
scores have the heavy tail of a likelihood: past the largest number of float16. Peaks are resident memory of a process
of its own that packs so many images, above what it holds before it starts; the baseline keeps all maps, then packs.

Scales are compared on the same maps: AU-PRO of what float16 has left against that of the maps, exactly, and what
`Merged.moves` says that it may move by at most. The floor is 0.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

import hrbench
import hrbench.evidence.histograms
from hrbench.method import FitContext, Method, Normals, Prediction, Preset
from hrbench.runs import server_archive
from hrbench.runs.detector import Detector
from hrbench.runs.half_scale import HalfScale, Merged
from hrbench.runs.server_archive import pack_maps
from hrbench.runs.store import load_run

FOLDERS = {"test_private": "regular", "test_private_mixed": "mixed"}
LIMITS = (0.05, 0.30)
MIB = 1 << 20


class HeavyTailed(Method):
    """Exponential of how much darker blocks of 4 x 4 pixels are than normal ones."""

    title = "Heavy-tailed"
    paper = "none"
    multiple = 4
    presets: ClassVar = {"native": Preset("tiled:512:64")}

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Learn mean and standard deviation of the blocks of one batch."""
        blocks = next(iter(normals.batches(8, steps=1, seed=context.seed)))
        blocks = nn.functional.avg_pool2d(blocks, 4).mean(dim=1)
        self.mean, self.std = blocks.mean(), blocks.std()

    def predict(self, batch: Tensor) -> Prediction:
        """Return the exponential of the distance below the mean, in standard deviations, at most e^20."""
        blocks = nn.functional.avg_pool2d(batch, 4).mean(dim=1)
        return Prediction({"darkness": ((self.mean - blocks) / self.std).clamp(max=20).exp()})


def generate(place: Path, number: int, size: tuple[int, int]) -> None:
    """Write the dataset with so many private images in each folder, the masks beside it, and its descriptor."""
    rng = np.random.default_rng(0)
    texture = rng.normal(150, 6, (512, 512, 3))

    def write(path: Path, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> None:
        tiles = [-(-side // 512) for side in shape]
        shift = tuple(rng.integers(0, 512, 2).tolist())
        pixels = np.tile(np.roll(texture, shift, (0, 1)), (*tiles, 1))[: shape[0], : shape[1]]
        if mask is not None:
            pixels[mask] -= rng.uniform(2, 40)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)

    root = place / "root/can"
    for index in range(60):
        write(root / f"train/good/{index:03d}_regular.png", (512, 512))
    mask = np.zeros((512, 512), bool)
    mask[40:80, 40:90] = True
    write(root / "validation/good/000_regular.png", (512, 512))
    write(root / "test_public/good/000_regular.png", (512, 512))
    write(root / "test_public/bad/000_regular.png", (512, 512), mask)
    (root / "test_public/ground_truth/bad").mkdir(parents=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(root / "test_public/ground_truth/bad/000_regular_mask.png")
    (place / "masks").mkdir()
    for folder, light in FOLDERS.items():
        for index in range(number):
            hidden = np.zeros(size, bool)
            for _ in range(3 * (index % 2)):
                side = int(rng.integers(6, 60))
                top, left = (int(rng.integers(0, extent - side)) for extent in size)
                hidden[top : top + side, left : left + side] = True
            write(root / folder / f"{index:03d}_{light}.png", size, hidden)
            np.save(place / f"masks/{index:03d}_{light}.npy", np.packbits(hidden))
    counts = f'base = "mvtec_ad_2"\n[total]\n[categories]\ncan = {{ private = {number} }}\n'
    (place / "mine.toml").write_text(counts, encoding="utf-8")


def fit(place: Path) -> None:
    """Run the method on the public part."""
    hrbench.run(place / "mine.toml", [str(Path(__file__).resolve())], root=place / "root", output=place / "runs",
                device="cpu", check=False, rehearse=False)  # fmt: skip


def pack(place: Path, *, keep: bool) -> dict[str, float]:
    """Pack the archive in this process, and say what it took."""
    torch.set_num_threads(1)
    images = len(list((place / "root/can").glob("test_private*/*.png")))
    real = Detector.verdicts
    if keep:

        def kept(self: Detector, *args: Any, **options: Any) -> Iterator[Any]:
            return iter(list(real(self, *args, **options)))

        server_archive.Detector.verdicts = kept  # type: ignore[method-assign]
    target = place / f"maps{images}.tar.gz"
    target.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    pack_maps([place / "runs"], place / "root", target, dataset=place / "mine.toml", device="cpu",
              method=str(Path(__file__).resolve()))  # fmt: skip
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"images": images, "seconds": seconds / images, "mib": (peak - before) / 1024,
            "archive": target.stat().st_size / MIB}  # fmt: skip


def compare(place: Path, size: tuple[int, int]) -> list[tuple[str, ...]]:
    """Compare scales on maps of the private images."""
    torch.set_num_threads(1)
    detector = load_run(place / "runs").detector(device="cpu", method=str(Path(__file__).resolve()))
    assert detector.calibration is not None
    images = sorted((place / "root/can").glob("test_private*/*.png"))
    maps = [verdict.anomaly_map for verdict in detector.predict(images)]
    packed = [np.load(place / f"masks/{image.stem}.npy") for image in images]
    masks = [np.unpackbits(bits, count=size[0] * size[1]).reshape(size).astype(bool) for bits in packed]
    normal = detector.calibration.scores.keys
    low, high = (float(value) for value in hrbench.evidence.histograms.key_scores(normal[[0, -1]], 10))

    def plain(factor: float, zero: float = 0.0) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float16]]:
        def scale(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
            with np.errstate(over="ignore"):
                return ((scores - np.float32(zero)) * np.float32(factor)).astype(np.float16)

        return scale

    scales = {
        "as it is": plain(1),
        "divided by the largest normal score": plain(1 / high),
        "the same, from the lowest normal score on": plain(1 / (high - low), low),
        "`HalfScale`": HalfScale.of(detector.calibration),
    }
    native = aupro(maps, masks)
    lines = []
    for name, scale in scales.items():
        merged, halves = Merged(), [scale(scores) for scores in maps]
        infinite = sum(int(np.isinf(half).sum()) for half in halves)
        for scores, half in zip(maps, halves, strict=True):
            merged.add(scores, half)
        left = aupro([np.nan_to_num(half.astype(np.float32)) for half in halves], masks)
        moved = (f"{abs(a - b):.1e} (at most {merged.moves(limit):.1e})" for a, b, limit in
                 zip(native, left, LIMITS, strict=True))  # fmt: skip
        lines.append((name, f"{merged.before // merged.images:,}", f"{merged.after // merged.images:,}",
                      f"{infinite:,}", *moved))  # fmt: skip
    return lines


def aupro(maps: list[npt.NDArray[np.float32]], masks: list[npt.NDArray[np.bool_]]) -> list[float]:
    """Return the exact AU-PRO up to each limit."""
    found = hrbench.evaluate(maps, masks, exact=True)
    return [found.value("aupro", "all", limit) for limit in LIMITS]


def alone(*arguments: str) -> Any:
    """Run a part of this script in a process of its own, and return what it printed last."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> list[str]:
    """Return a table in Markdown."""
    return ["| " + " | ".join(line) + " |" for line in (heads, ("---",) * len(heads), *lines)]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[4, 20, 40])
    parser.add_argument("--size", type=int, nargs=2, default=[2048, 2448], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = (args.size[0], args.size[1])
    if args.part:
        kind, place = args.part[0], Path(args.part[1])
        done = compare(place, size) if kind == "compare" else pack(place, keep=kind == "keep")
        print(json.dumps(done))
        return
    lines, scales = [], []
    for number in args.images:
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            generate(place, number // 2, size)
            fit(place)
            for kind, name in (("pack", "`hrbench submission make`"), ("keep", "all maps, then the archive")):
                took = alone("--part", kind, scratch)
                raw = took["images"] * 3 * size[0] * size[1] / MIB
                lines.append((name, f"{took['images']:.0f}", f"{took['mib']:.0f}", f"{took['seconds']:.2f}",
                              f"{took['archive']:.0f}", f"{raw:.0f}"))  # fmt: skip
            if number == args.images[0]:
                scales = alone("--part", "compare", scratch, "--size", *map(str, size))
    heads = ("way", "images", "peak above the start, MiB", "s per image", "archive, MiB", "unpacked, MiB")
    text = [f"Images of {size[0]} x {size[1]} pixels (height x width), one thread, CPU.", "", *table(heads, lines), ""]
    heads = ("float16 of the scores", "scores of a map", "left", "infinite", *(f"AU-PRO@{x:g} moves" for x in LIMITS))
    text += table(heads, [tuple(line) for line in scales])
    print("\n".join(text))
    if args.output:
        note = "Written by `python tools/bench_submission.py`, which says how.\n\n"
        args.output.write_text(f"# Packing maps for the server\n\n{note}" + "\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
