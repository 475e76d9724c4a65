"""Draw `methods/pseudo_anomalies.png`: what each pseudo-anomaly generator does to procedural images.

One row per generator; twice, the clean tile, the corrupted tile, and the label.

    python tools/contact_sheet.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hrbench._util.resources import methods_package
from hrbench.data import load_dataset, make_dataset
from hrbench.imaging import read_image

methods_package()
from hrbench.methods._pseudo_anomalies import GENERATORS, corrupt  # noqa: E402

SIDE, GAP, MARGIN = 176, 4, 64
SURFACES = ("brushed_metal", "circuit_board", "weave", "bearing", "wood_grain", "tiles", "perforated_sheet", "bolts")
COLOURS = 48


def tiles() -> Tensor:
    """Return two crops of each surface, (16, 3, SIDE, SIDE) in [0, 1]."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_dataset(
            Path(folder) / "surfaces", categories=SURFACES, size=(512, 512), train=2, test_good=1, test_defective=1
        )
        categories = load_dataset("folder", root).select(SURFACES)
        images = [read_image(sample.image) for category in categories for sample in category.train]
    start = (512 - SIDE) // 2
    crops = [image[start : start + SIDE, start : start + SIDE] for image in images]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    clean = tiles()
    columns, step = 6, SIDE + GAP
    sheet = Image.new("RGB", (MARGIN + columns * step, len(GENERATORS) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, generator in enumerate(GENERATORS):
        found = corrupt(clean, np.random.default_rng(3), generator=generator, probability=1.0)
        draw.text((4, row * step + SIDE // 2), generator, fill="black")
        for half in range(2):
            index = (2 * row + 7 * half) % len(clean)
            label = found.labels[index].expand(3, -1, -1).float()
            for column, picture in enumerate((clean[index], found.images[index], label)):
                pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
                sheet.paste(Image.fromarray(pixels), (MARGIN + (3 * half + column) * step, row * step))
    path = Path(__file__).parents[1] / "methods" / "pseudo_anomalies.png"
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {sheet.size[0]} x {sheet.size[1]}")


if __name__ == "__main__":
    main()
