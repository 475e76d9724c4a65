"""Small data for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_tree(root: Path, *, categories=("bolt",), train=8, good=3, bad=5, size=(48, 70)) -> Path:
    """Write grey noise images with dark squares as defects, in MVTec AD layout."""
    rng = np.random.default_rng(0)

    def image(*parts):
        path = root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path, rng.normal(150, 6, (*size, 3))

    def save(path, pixels):
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)

    for category in categories:
        for index in range(train):
            save(*image(category, "train", "good", f"{index:03d}.png"))
        for index in range(good):
            save(*image(category, "test", "good", f"{index:03d}.png"))
        for index in range(bad):
            path, pixels = image(category, "test", "dent", f"{index:03d}.png")
            mask = np.zeros(size, np.uint8)
            for _ in range(1 + index % 2):
                side = 2 + 3 * index
                top, left = rng.integers(0, size[0] - side), rng.integers(0, size[1] - side)
                mask[top : top + side, left : left + side] = 255
            pixels[mask > 0] -= 60
            save(path, pixels)
            target = root / category / "ground_truth" / "dent" / f"{index:03d}_mask.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(target)
    return root
