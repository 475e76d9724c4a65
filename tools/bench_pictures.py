"""Peak memory of `run` and `evaluate` with and without pictures, each in a process of its own.

    python tools/bench_pictures.py [--sides 1000 10000] [--output results/bench_pictures.md]

One defective and one good test image of so many pixels on a side, RGB of 8 bits as PNG; maps are float32 as TIFF. The
method learns nothing and keeps nothing but its map, so that hardly anything but the pipeline takes memory. Peaks are
resident memory; "above the start" leaves out the process with its imports, and bytes per pixel are those of one image.
What pictures add is the difference of the two peaks in bytes per pixel: pictures are drawn when all else is done, one
by one, so that what they hold only counts where it passes what inference or reading the maps held before.

The floor: an image decodes to 3 bytes per pixel, beside pillow's own 4 while it is copied; a map is 4; a mask 1. Held
one after another, no picture needs more than inference (8.5 of a frugal method) has needed already: 0 above it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tifffile
from PIL import Image
from torch import Tensor, nn

import hrbench
from hrbench.method import FitContext, Method, Normals, Prediction, Preset

Image.MAX_IMAGE_PIXELS = None
COMMANDS = {"run": (), "evaluate": (), "evaluate --exact": ("exact",)}


class Cheap(Method):
    """Darkness of blocks of 4 x 4 pixels."""

    title = "Cheap"
    paper = "none"
    multiple = 4
    presets: ClassVar = {"native": Preset("tiled:512:64")}

    def __init__(self) -> None:
        super().__init__()

    def fit(self, normals: Normals, context: FitContext) -> None:
        """Learn nothing."""

    def predict(self, batch: Tensor) -> Prediction:
        """Return one minus the mean of each block."""
        return Prediction({"darkness": 1 - nn.functional.avg_pool2d(batch, 4).mean(dim=1)})


def generate(root: Path, side: int) -> None:
    """Write a dataset in MVTec AD's layout, and maps of its test images."""
    rng = np.random.default_rng(0)
    texture = rng.normal(150, 6, (500, 500, 3)).clip(0, 255).astype(np.uint8)
    for number in range(3):
        _save(root / "data" / "part" / "train" / "good" / f"{number}.png", texture)
    image = np.tile(texture, (-(-side // 500),) * 2 + (1,))[:side, :side].copy()
    mask = np.zeros((side, side), bool)
    for top, extent in ((side // 10, 6), (side // 2, side // 20), (side // 4, 40)):
        mask[top : top + extent, top : top + extent] = True
    for name, of in (("good", None), ("dent", mask)):
        _save(root / "data" / "part" / "test" / name / "0.png", image)
        if of is not None:
            image[of] -= 80
            _save(root / "data" / "part" / "test" / name / "0.png", image)
            _save(root / "data" / "part" / "ground_truth" / name / "0_mask.png", of)
        path = root / "maps" / "part" / "test" / name / "0.tiff"
        path.parent.mkdir(parents=True)
        scores = 1 - image.mean(axis=2, dtype=np.float32) / 255
        tifffile.imwrite(path, scores + rng.normal(0, 1e-3, scores.shape).astype(np.float32))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def measure(command: str, root: Path, pictures: bool) -> dict[str, Any]:
    """Do one command in this process; return its peaks in bytes, and what it wrote of pictures."""
    from hrbench.data import load_dataset
    from hrbench.protocol import load_protocol
    from hrbench.runs import scoring
    from hrbench.runs.external_maps import score_maps

    if not pictures:
        scoring.keep_pictures = lambda *_, **__: None
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start = _status("VmRSS")
    with tempfile.TemporaryDirectory(dir=root) as output:
        if command == "run":
            study = hrbench.run("folder", [__file__], root=root / "data", output=output, device="cpu")
            assert not study.failures, study.failures
            (done,) = study.runs
        else:
            categories = load_dataset("folder", root / "data").categories
            exact, protocols = "exact" in COMMANDS[command], [load_protocol("native")]
            (done,) = score_maps(categories, root / "maps", Path(output), protocols, name="maps", exact=exact)
        return {"start": start, "peak": _status("VmHWM"), "pictures": len(done.pictures.items)}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def main() -> None:
    """Parse arguments, measure every command with and without pictures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 10000], metavar="PIXELS")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    parser.add_argument("--one", nargs=3, metavar=("COMMAND", "ROOT", "PICTURES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], Path(args.one[1]), args.one[2] == "with")))
        return
    rows = []
    for side in args.sides:
        with tempfile.TemporaryDirectory() as root:
            generate(Path(root), side)
            for command in args.commands:
                peaks = {}
                for how in ("without", "with"):
                    own = [sys.executable, __file__, "--one", command, root, how]
                    done = subprocess.run(own, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr)
                    found = json.loads(done.stdout.splitlines()[-1])
                    above = peaks[how] = found["peak"] - found["start"]
                    row = {"command": command, "pixels": f"{side} x {side}", "pictures": found["pictures"]}
                    row |= {"peak MiB": f"{found['peak'] / 2**20:.0f}", "above the start": f"{above / 2**20:.0f}"}
                    rows.append(row | {"B/px": f"{above / side**2:.1f}"})
                    added = (peaks[how] - peaks["without"]) / side**2
                    rows[-1]["added by pictures, B/px"] = f"{added:.1f}" if how == "with" else ""
                    print(*rows[-1].values(), file=sys.stderr, sep="\t")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(text)
    if args.output:
        args.output.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
