"""Model the way from files to evidence: what each resource takes per native megapixel, and which one sets the pace.

    python tools/pipeline_model.py [--methods fastflow uflow] [--output results/bench_inference.md]

The stages overlap, so that throughput is one over the busiest resource: the GPU, each direction of its bus, a thread
that does a stage alone, threads that share one, or all cores of the host together. Stages of the host are measured
here, in seconds of a processor; the GPU and its bus are floors: the operations of the presets ``native``, counted with
their precision under autocast, at a third of the chip's peak, and bytes at what memory and bus carry.

``before``: evidence is counted by one thread of the host, to which each map comes, and U-Flow's test looks everywhere,
in the thread that queues the work. ``now``: evidence is counted on the GPU, and threads decide beside.

Last, the model is held against a whole run on this machine's CPU, from files to evidence, with presets ``demo``: the
seconds of a processor that the stages take by themselves and together, and the wall-clock that the model expects.
With ``--device cuda`` it is held against that GPU, in bfloat16 and with presets ``native``, without weights.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench_inference
import bench_uflow_test
import numpy as np
import torch
from bench_inference import Setup, files, table
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from hrbench import create_method, load_protocol
from hrbench.data.sample import Sample
from hrbench.engine.anomaly_map import AnomalyMap, finish
from hrbench.engine.device import device_name, pick_device
from hrbench.engine.inference import DECIDING, WORKERS_CPU, predict
from hrbench.engine.prefetch import ahead
from hrbench.engine.views import View, stack_tiles
from hrbench.evidence import EvidenceCollector, EvidenceSpec
from hrbench.evidence.tally import Places
from hrbench.imaging import read_image
from hrbench.method import Method
from hrbench.precision import autocast
from hrbench.registry import find_preset, load_method
from hrbench.runs.environment import environment

METHODS = ("fastflow", "uflow", "rstpm", "isstad", "l2bt")
SIDE = 2048  # of the image that tiles and stages are counted on
BATCH = 8
SPEC = EvidenceSpec.of(load_protocol("native"))
HEADING = "## A model of the pipeline"


@dataclass(frozen=True)
class Chip:
    """A GPU and its bus, as their makers say.

    Attributes
    ----------
    low, convolution, full : float
        Peak in TFLOP/s: bfloat16, convolutions in float32 (TF32), other float32.
    memory, bus : float
        GB/s; of the bus, in one direction.
    """

    name: str
    low: float
    convolution: float
    full: float
    memory: float
    bus: float


CHIPS = (
    Chip("H200", 989, 495, 67, 4800, 50),
    Chip("H100", 989, 495, 67, 3350, 50),
    Chip("RTX 4090", 165, 83, 83, 1008, 25),
)
SHARE = 1 / 3  # of its peak that a chip reaches
QUEUED = 8e-6  # seconds of Python and torch for an operation that is queued on a GPU


@dataclass(frozen=True)
class Host:
    """Seconds of a processor per native megapixel of what the host does."""

    decode: float
    stack: float  # per megapixel of tiles
    evidence: float
    places: float  # of evidence whose pixels the GPU counts

    test_everywhere: float = 0.0  # U-Flow's, per megapixel of tiles
    test_found: float = 0.0


@dataclass(frozen=True)
class Work:
    """What a method asks of a GPU per native megapixel.

    Attributes
    ----------
    low, convolution, full : float
        TFLOP by precision, overlap included.
    operations : float
        That are queued.
    tiles : float
        Pixels of tiles per native pixel.
    moved : float
        Bytes of the GPU's memory per pixel beside the networks: blending, ``finish``.
    decides : bool
        U-Flow's test.
    """

    low: float
    convolution: float
    full: float
    operations: float
    tiles: float
    moved: float
    decides: bool = False


def demands(work: Work, host: Host, chip: Chip, cores: int, *, before: bool) -> dict[str, float]:
    """Return the seconds per native megapixel of every resource."""
    test = work.tiles * (host.test_everywhere if before else host.test_found) * work.decides
    counting = 0 if before else 120  # bytes per pixel of the sort and its passes
    queueing = work.operations * QUEUED
    decode, stack = host.decode, host.stack * work.tiles
    evidence = host.evidence if before else host.places
    networks = work.low / chip.low + work.convolution / chip.convolution + work.full / chip.full
    parts = {
        "GPU": networks / SHARE + (work.moved + counting) / 1e3 / chip.memory,
        "bus to the GPU": 3 * work.tiles / 1e3 / chip.bus,
        "bus to the host": ((4 + work.decides) if before else 0.1) / 1e3 / chip.bus,
        "decoding threads": decode / min(8, cores),
        "stacking thread": stack,
        "queueing thread": queueing + (test if before else 0),
        "evidence thread": evidence,
        "deciding threads": 0 if before else test / min(DECIDING, cores),
    }
    return parts | {"all cores": (decode + stack + queueing + test + evidence) / cores}


def pace(demanded: Mapping[str, float]) -> tuple[float, str]:
    """Return the native megapixels per second, and the resource that sets them."""
    slowest = max(demanded, key=lambda name: demanded[name])
    return 1 / demanded[slowest], slowest


class Counting(TorchDispatchMode):
    """Counts operations, and those with numbers by the precision that they are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = {"low": 0, "convolution": 0, "full": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += not func.is_view
        kind = "low" if any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in args) else "full"
        if kind == "full" and "convolution" in str(func):
            kind = "convolution"
        if "scaled_dot_product" in str(func):  # that of CPUs is not in torch's registry
            self.flops[kind] += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif func._overloadpacket in flop_registry:
            self.flops[kind] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@torch.no_grad()
def work_of(name: str, preset: str = "native") -> Work:
    """Count what a preset asks of a GPU."""
    view = View.parse(find_preset(load_method(name), name, preset).view)
    torch.manual_seed(0)
    method = create_method(name, preset=preset, weights="random").eval()
    tile = view.tile
    number = sum(len(look.place((SIDE, SIDE))) for look in view.looks)
    pixels, inputs = SIDE * SIDE / 1e6, number / (SIDE * SIDE / 1e6)
    batch = torch.rand(1, 3, *tile)
    with Counting() as counted, autocast(torch.device("cpu"), "bfloat16"):
        maps = method.predict(batch).maps
    with Counting() as finishing:
        method.finish({key: torch.rand(256, 256) for key in maps})
    low, convolution, full = (counted.flops[kind] * inputs / 1e12 for kind in ("low", "convolution", "full"))
    # Eight operations blend a map of a tile; each of `finish` reads and writes every pixel.
    operations = counted.operations * inputs / BATCH + 8 * len(maps) * inputs + finishing.operations / pixels
    overlap = number * tile[0] * tile[1] / SIDE**2
    moved = 24 * overlap * len(maps) + 8 * finishing.operations
    return Work(low, convolution, full, operations, overlap, moved, decides=name == "uflow")


def processor_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def host_of(sample: Sample, *, test: bool = True) -> Host:
    """Measure the host's stages on one image."""
    pixels = read_image(sample.image)
    height, width = pixels.shape[:2]
    native = height * width / 1e6
    view = View.parse("tiled:512:128")
    ((prepared, placement),) = view.prepare(pixels)
    tiles = [placement.cut(prepared, index) for index in range(len(placement))][:BATCH]
    decode = processor_seconds(lambda: read_image(sample.image))
    stack = processor_seconds(lambda: stack_tiles(tiles))
    map_, mask = scores_and_mask(height, width)
    nothing = np.zeros((8, 8), np.float32)
    evidence = processor_seconds(lambda: evidence_of([(map_, mask)]))
    small = processor_seconds(lambda: evidence_of([(nothing, None)]))
    spent = {}
    if test:  # noise of the law, and on one tile in ten a spot
        for only in (False, True):
            noise, spot = (
                bench_uflow_test.part(bench_uflow_test.test(only), bench_uflow_test.energies_of(kind, 2))
                for kind in ("noise", "a spot")
            )
            spent[only] = (0.9 * noise + 0.1 * spot) / 1e3 / (512 * 512 / 1e6)
    tiled = len(tiles) * math.prod(placement.tile) / 1e6
    # What is left of evidence that a GPU counts: masks, components, and gathering; as long as for a map of no pixels.
    places = small + processor_seconds(lambda: Places.of(mask, SPEC))
    return Host(
        decode / native,
        stack / tiled,
        evidence / native,
        places / native,
        spent.get(False, 0.0),
        spent.get(True, 0.0),
    )


def scores_and_mask(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((height, width), bool)
    for row, column in rng.integers(0, min(height, width) - 40, (5, 2)):
        mask[row : row + 20, column : column + 30] = True
    return rng.gamma(2.0, 1.0, (height, width)).astype(np.float32), mask


def evidence_of(maps: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> None:
    collector = EvidenceCollector(SPEC)
    for number, (map_, mask) in enumerate(maps):
        collector.update(str(number), map_, mask)
    collector.result()


def run_whole(setup: Setup, method: Method, samples: Sequence[Sample], mask: np.ndarray) -> None:
    """Go from files to evidence, as a run does."""
    collector = EvidenceCollector(SPEC)

    def counted(item: AnomalyMap) -> None:
        collector.update_predicted(item.sample.id, item, mask)

    maps = predict(method, samples, setup.view, setup.device, batch_size=BATCH, precision=setup.precision)
    finished: Iterator[AnomalyMap] = (finish(method, item, whole=False) for item in maps)
    with closing(ahead(counted, finished)) as done:
        for _ in done:
            pass
    collector.result()


def held_against(name: str, device: torch.device, sample: Sample, count: int, chip: Chip) -> dict[str, str]:
    """Compare a whole run with the model's prediction of it."""
    on_gpu = device.type == "cuda"
    preset = "native" if on_gpu else "demo"
    view = View.parse(find_preset(load_method(name), name, preset).view)
    setup = Setup(name, preset, view, BATCH, device, "bfloat16" if on_gpu else "float32")
    pixels = read_image(sample.image)
    mask = scores_and_mask(*pixels.shape[:2])[1]
    native = pixels.shape[0] * pixels.shape[1] / 1e6
    samples = [replace(sample, id=f"{number}.png") for number in range(count)]
    method = setup.made()
    run_whole(setup, method, samples[:1], mask)  # warm
    host = host_of(sample, test=on_gpu)
    if on_gpu:
        paced, slowest = pace(demands(work_of(name), host, chip, os.cpu_count() or 1, before=False))
        stages = math.nan
    else:
        rows = {row["stage"]: float(row["CPU ms"]) / 1e3 for row in bench_inference.profile(setup, sample)}
        beside = rows["decode"] + rows["prepare"]
        main = rows["transfer and scale"] + rows["forward"] + rows["merge"] + rows["finish, check, to the host"]
        stages = (beside + rows["cut and stack"] + main + host.evidence * native) / native
        each = {
            "decoding threads": beside / native / WORKERS_CPU,
            "stacking thread": rows["cut and stack"] / native,
            "network's thread": main / native,
            "evidence thread": host.evidence,
            "all cores": stages / (os.cpu_count() or 1),
        }
        paced, slowest = pace(each)
    setup.wait()
    started, spent = time.perf_counter(), time.process_time()
    run_whole(setup, method, samples, mask)
    setup.wait()
    wall, whole = time.perf_counter() - started, (time.process_time() - spent) / count / native
    found = count * native / wall
    row = {"method": name, "preset": preset, "predicted Mpx/s": f"{paced:.3g}", "set by": slowest}
    row |= {"measured Mpx/s": f"{found:.3g}", "measured / predicted": f"{found / paced:.2f}"}
    if not on_gpu:
        row |= {"stages CPU s/Mpx": f"{stages:.3g}", "whole CPU s/Mpx": f"{whole:.3g}"}
        row["whole / stages"] = f"{whole / stages:.2f}"
    return row


def jpeg_seconds(folder: Path, sample: Sample) -> float:
    """Measure how long a megapixel of JPEG takes."""
    path, pixels = folder / "image.jpg", read_image(sample.image)
    Image.fromarray(pixels).save(path, quality=92)
    return processor_seconds(lambda: read_image(path)) / (pixels.size / 3e6)


def rows_of(works: Mapping[str, Work], host: Host, jpeg: float) -> list[dict[str, str]]:
    """Return the predicted pace of every method, before and now, by chip and cores."""
    rows = []
    for name, work in works.items():
        for chip in CHIPS:
            row = {"method": name, "GPU": chip.name}
            for cores in (8, 16):
                for when, before in (("before", True), ("now", False)):
                    speed, slowest = pace(demands(work, host, chip, cores, before=before))
                    row[f"{when}, {cores} cores"] = f"{speed:.0f} ({slowest})"
            speed, slowest = pace(demands(work, replace(host, decode=jpeg), chip, 16, before=False))
            row["now, JPEG, 16 cores"] = f"{speed:.0f} ({slowest})"
            row["GPU alone"] = f"{1 / demands(work, host, chip, 16, before=True)['GPU']:.0f}"
            rows.append(row)
    return rows


def section(methods: Sequence[str], device: torch.device, side: int, images: int, checked: Sequence[str]) -> str:
    """Return the text about the model."""
    known = environment()
    with tempfile.TemporaryDirectory() as name:
        sample = files(Path(name), SIDE, 1)[0]
        host, jpeg = host_of(sample), jpeg_seconds(Path(name), sample)
        works = {method: work_of(method) for method in methods}
        small = files(Path(name), side, 1)[0]
        check = [held_against(method, device, small, images, CHIPS[1]) for method in checked]
    measured = {
        "decode PNG, per thread": host.decode,
        "decode JPEG, per thread": jpeg,
        "stack tiles": host.stack,
        "evidence on the host": host.evidence,
        "evidence, what is left of it": host.places,
        "U-Flow's test everywhere": host.test_everywhere,
        "U-Flow's test where found": host.test_found,
    }
    stages = [{"stage": key, "Mpx/s": f"{1 / value:.3g}"} for key, value in measured.items() if value]
    asked = [
        {
            "method": key,
            "TFLOP/Mpx bfloat16": f"{work.low:.2f}",
            "float32 convolutions": f"{work.convolution:.3f}",
            "other float32": f"{work.full:.3f}",
            "operations/Mpx": f"{work.operations:.0f}",
            "tile pixels/pixel": f"{work.tiles:.2f}",
        }
        for key, work in works.items()
    ]
    floors = [
        {"GPU": c.name, "bfloat16 TFLOP/s": f"{c.low:g}", "TF32": f"{c.convolution:g}", "float32": f"{c.full:g}",
         "memory GB/s": f"{c.memory:g}", "bus GB/s": f"{c.bus:g}"}
        for c in CHIPS
    ]  # fmt: skip
    load = f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
    return f"""{HEADING}

`python tools/pipeline_model.py --size {side} --images {images}`, commit {known["commit"]}:
{device_name(torch.device("cpu"))}, torch {known["torch"]}; {load}

The stages overlap: throughput is one over the busiest resource. Measured here, in megapixels per second of a processor
(the test and stacking, of tiles):

{table(stages)}

What the presets `native` ask of a GPU, counted with autocast, in batches of {BATCH}; to queue an operation takes
{1e6 * QUEUED:.0f} µs (assumed):

{table(asked)}

Floors, as their makers say; networks reach a third of the peak (assumed):

{table(floors)}

Predicted, in native megapixels per second, with what sets them. *Before*: evidence on one thread of the host, U-Flow's
test everywhere and in the queueing thread. *Now*: evidence on the GPU, the test where something can be found, and in
threads. Files are PNG unless said otherwise:

{table(rows_of(works, host, jpeg))}

The model against a whole run, from files to evidence, on {device_name(device)}:

{table(check)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--checked", nargs="+", default=list(METHODS), help="methods that are run as a whole")
    parser.add_argument("--device", default="cpu", help="of the whole run")
    parser.add_argument("--size", type=int, default=1024, help="of its square images")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--output", type=Path, help="Markdown whose section about the model is written anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = section(args.methods, pick_device(args.device), args.size, args.images, args.checked)
    print(text)
    if args.output:
        before = args.output.read_text(encoding="utf-8") if args.output.exists() else ""
        kept = re.sub(rf"\n*{HEADING}\n.*?(?=\n## |\Z)", "", before, flags=re.DOTALL).rstrip()
        args.output.write_text(f"{kept}\n\n{text}".lstrip(), encoding="utf-8")


if __name__ == "__main__":
    main()
