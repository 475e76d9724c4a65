"""Compare the way from PNG files to anomaly maps with the bare model, and see if its memory grows with the images.

    python tools/bench_inference.py --methods fastflow --view tiled:512:128 whole:512 --size 2048 --images 4
        [--preset native] [--batch-size 8] [--repeats 3] [--device cpu] [--memory 10 200]

Per method and view, in native megapixels per second:

- model: ``Method.predict`` alone, on batches of tiles that lie on the device;
- pipeline: decoding, tiling, transfer, ``predict``, blending and ``finish``, from files to maps on the host;
- ratio: pipeline to model. 1 means that everything around the model is hidden behind it.

Both take turns; medians of the repeats, after a warm-up. With ``--memory``, the pipeline also runs once per number of
images in a process of its own, which reports its peak: MiB of the host, and of the GPU where one is used. Weights are
random; files are smooth noise and in the page cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hrbench import create_method
from hrbench.data.sample import Sample
from hrbench.imaging import read_image
from hrbench.inference import predict
from hrbench.method import Method
from hrbench.origin import device_name, peak_memory, pick_device
from hrbench.views import AnyView, parse_view, to_unit


@dataclass(frozen=True)
class Setup:
    """One row of the table."""

    method: str
    preset: str
    view: AnyView
    batch_size: int
    device: str

    def made(self) -> tuple[Method, torch.device]:
        """Return the method on its device."""
        device = pick_device(self.device)
        torch.manual_seed(0)
        method = create_method(self.method, preset=self.preset, weights="random").to(device).eval()
        self.view.check_multiple(method.multiple, self.method)
        return method, device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fastflow"])
    parser.add_argument("--preset", default="native")
    parser.add_argument("--view", nargs="+", type=parse_view, default=[parse_view("tiled:512:128")])
    parser.add_argument("--size", type=int, default=2048, help="of the square images")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, nargs="*", default=[], metavar="IMAGES")
    args = parser.parse_args()
    print(f"{args.images} images of {args.size} x {args.size}, {device_name(pick_device(args.device))}\n")
    head = ["method", "view", "tiles", "model MP/s", "pipeline MP/s", "ratio"]
    head += [f"MiB at {n} images (host, device)" for n in args.memory]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    with tempfile.TemporaryDirectory() as folder:
        samples = files(Path(folder), args.size, args.images)
        for name in args.methods:
            for view in args.view:
                setup = Setup(name, args.preset, view, args.batch_size, args.device)
                tiles, model, pipeline = speeds(setup, samples, args.repeats)
                cells = [name, view.text, str(tiles), f"{model:.2f}", f"{pipeline:.2f}", f"{pipeline / model:.2f}"]
                for number in args.memory:
                    context = multiprocessing.get_context("spawn")  # a peak is never forgotten: a process for each
                    with ProcessPoolExecutor(1, mp_context=context) as process:
                        host, device = process.submit(peaks, setup, files(Path(folder), args.size, number)).result()
                    cells.append(f"{host:.0f}, {device:.0f}")
                print(f"| {' | '.join(cells)} |", flush=True)


def files(folder: Path, size: int, count: int) -> list[Sample]:
    """Return `count` samples of one written image."""
    path = folder / f"{size}.png"
    if not path.is_file():
        coarse = np.random.default_rng(0).integers(0, 256, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return [Sample(f"{number}.png", path, None, 0, "good", "test", "noise") for number in range(count)]


def speeds(setup: Setup, samples: list[Sample], repeats: int) -> tuple[int, float, float]:
    """Return the tiles of an image, and megapixels per second of the model and of the pipeline."""
    method, device = setup.made()
    pixels = read_image(samples[0].image)
    tiles = torch.cat([part.split(pixels)[0] for part in setup.view.parts])
    every = tiles.repeat(len(samples), 1, 1, 1)
    batches = [to_unit(batch, device) for batch in every.split(setup.batch_size)]
    work = pixels.shape[0] * pixels.shape[1] * len(samples) / 1e6

    @torch.no_grad()
    def model() -> None:
        for batch in batches:
            method.predict(batch)

    def pipeline() -> None:
        run(setup, method, samples, device)

    with torch.no_grad():
        method.predict(batches[0])  # warm
    run(setup, method, samples[:1], device)
    taken: dict[Callable[[], None], list[float]] = {model: [], pipeline: []}
    for _ in range(repeats):
        for way, seconds in taken.items():
            started = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return len(tiles), *(work / statistics.median(taken[way]) for way in (model, pipeline))


@torch.no_grad()
def run(setup: Setup, method: Method, samples: list[Sample], device: torch.device) -> None:
    """Bring all images from files to maps on the host."""
    for item in predict(method, samples, setup.view, device, batch_size=setup.batch_size):
        for maps in item.parts:
            method.finish(maps).float().cpu().numpy()


def peaks(setup: Setup, samples: list[Sample]) -> tuple[float, float]:
    """Return the peak of host and device memory in MiB; zero for a device without memory of its own."""
    method, device = setup.made()
    run(setup, method, samples, device)
    return peak_memory(torch.device("cpu")), peak_memory(device) if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
