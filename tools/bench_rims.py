"""What the rims of defects add to evidence: CPU seconds and bytes, with and without them in turns, on made-up maps.

python -m tools.bench_rims [--repeats 5] [--side 1024] [--images 12]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from hrbench.evidence import EvidenceCollector, EvidenceSpec, tally
from hrbench.evidence.tally import Places
from hrbench.imaging import find_components

Bools = npt.NDArray[np.bool_]


class _WithoutRims(Places):
    @staticmethod
    def of(mask: Bools | None, spec: EvidenceSpec) -> Places:
        """Choose pixels as evidence without rims did."""
        return Places(find_components(np.zeros((0, 1), bool) if mask is None else mask, spec.connectivity))


def scenes(kind: str, images: int, side: int) -> list[tuple[npt.NDArray[np.float32], Bools | None]]:
    """Return maps and masks; every fourth image is good."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:side, :side]
    made: list[tuple[npt.NDArray[np.float32], Bools | None]] = []
    for number in range(images):
        scores = np.exp(gaussian_filter(rng.normal(size=(side, side)), 2) * 4).astype(np.float32)
        mask = np.zeros((side, side), bool)
        if kind == "1 % of the pixels, scattered":
            mask = rng.random((side, side)) < 0.01
        elif kind == "one of a tenth of the image":
            mask[: side // 2, : side // 5] = True
        else:
            for _ in range(13):
                radius = np.sqrt(np.exp(rng.uniform(np.log(6), np.log(side * side / 100))) / np.pi)
                mask |= (rows - rng.integers(side)) ** 2 + (columns - rng.integers(side)) ** 2 <= radius**2
        made.append((scores, mask if number % 4 else None))
    return made


def collect(made: list[tuple[npt.NDArray[np.float32], Bools | None]], folder: Path) -> tuple[float, int]:
    """Return CPU seconds of the evidence of maps, and its bytes on disk."""
    collector, start = EvidenceCollector(EvidenceSpec()), time.process_time()
    for number, (scores, mask) in enumerate(made):
        collector.update(f"{number:03d}", scores, mask)
    evidence = collector.result()
    seconds = time.process_time() - start
    evidence.save(folder)
    return seconds, sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--images", type=int, default=12)
    args = parser.parse_args()
    print("| defects | CPU s without | with rims | more | MiB without | with rims | more |\n|---|" + "---|" * 6)
    for kind in ("13 an image, 6 px to 1 %", "one of a tenth of the image", "1 % of the pixels, scattered"):
        made = scenes(kind, args.images, args.side)
        times: dict[type[Places], list[float]] = {_WithoutRims: [], Places: []}
        sizes: dict[type[Places], int] = {}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(args.repeats):
                for places, spent in times.items():
                    tally.Places = places  # type: ignore[misc]
                    seconds, sizes[places] = collect(made, Path(folder))
                    spent.append(seconds)
        (before, after), (least, most) = map(min, times.values()), (size / 2**20 for size in sizes.values())
        print(
            f"| {kind} | {before:.2f} | {after:.2f} | {100 * (after / before - 1):.0f} % "
            f"| {least:.2f} | {most:.2f} | {100 * (most / least - 1):.0f} % |"
        )


if __name__ == "__main__":
    main()
