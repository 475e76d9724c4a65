"""Compare what a rehearsal expects (hrbench/engine/rehearsal.py) with what real runs take.

    python tools/check_rehearsal.py [--methods fastflow l2bt] [--size 256] [--train 30] [--test 20] [--repeats 3]
        [--preset demo] [--device cpu] [--batch-size 8]

One category of the procedural dataset. Per method: seconds of the fit and of predicting the test images, expected and
measured, with the ratio of the medians of the repeats; and the seconds of the rehearsal itself. The fit's are those
that the run records, the prediction's are wall-clock, with the evidence collected beside it.
On a busy machine or a virtual one, medians of several repeats are needed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hrbench import create_method, list_methods, load_dataset
from hrbench.data import make_dataset
from hrbench.engine.device import device_name, pick_device
from hrbench.engine.rehearsal import JobInputs, rehearse
from hrbench.engine.training import seeded
from hrbench.precision import pick_precision
from hrbench.protocol import load_protocol
from hrbench.runs import runner
from hrbench.runs.job import Job, make_job, split_normals
from hrbench.runs.shards import EvidenceShards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list_methods(), metavar="NAME")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--train", type=int, default=30)
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(f"{args.train} + {args.test} images of {args.size} px, preset {args.preset}, {device_name(device)}\n")
    print("| method | fit expected s | measured s | ratio | predict expected s | measured s | ratio | rehearsal s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(
            Path(folder) / "data",
            categories=["weave"],
            size=(args.size, args.size),
            train=args.train,
            test_good=args.test // 2,
            test_defective=args.test - args.test // 2,
        )
        (category,) = load_dataset("folder", Path(folder) / "data").categories
        for name in dict.fromkeys(args.methods):
            job = make_job(category, name, preset=args.preset, precision=pick_precision("auto", device))
            rows = []
            for repeat in range(args.repeats):
                output = Path(folder) / f"{name}{repeat}"
                rows.append((*expected(job, device, args.batch_size), *measured(job, output, device, args.batch_size)))
            fit, predict, rehearsal, real_fit, real_predict = (
                statistics.median(column) for column in zip(*rows, strict=True)
            )
            print(
                f"| {name} | {fit:.2f} | {real_fit:.2f} | {fit / real_fit:.2f} | {predict:.2f} | {real_predict:.2f} | "
                f"{predict / real_predict:.2f} | {rehearsal:.1f} |",
                flush=True,
            )


def expected(job: Job, device: torch.device, batch_size: int) -> tuple[float, float, float]:
    """Return the expected seconds of the fit, calibration included, and of the test images; and of the rehearsal."""
    fit_samples, held_out = split_normals(job.category)
    inputs = JobInputs.of(fit_samples, held_out, job.category.test, job.view)
    with seeded(job.seed):
        method = create_method(job.method, **job.options).to(device)
        started = time.perf_counter()
        found = rehearse(
            method,
            fit_samples,
            held_out,
            job.view,
            seed=job.seed,
            device=device,
            precision=job.precision,
            batch_size=batch_size,
        )
        seconds = time.perf_counter() - started
    fit, calibrate = found.fit_seconds(inputs.fit), found.predict_seconds(inputs.held_out * found.calibrates)
    predict = found.predict_seconds(inputs.test)
    if fit is None or calibrate is None or predict is None:
        raise SystemExit(f"{job.method_name}: not known, {found.reason}")
    return fit + calibrate, predict, seconds


def measured(job: Job, output: Path, device: torch.device, batch_size: int) -> tuple[float, float]:
    """Run the job; return the seconds of its fit and of predicting the test images."""
    seconds = 0.0

    collect = EvidenceShards.collect

    def timed(*args: Any) -> Iterator[int]:
        nonlocal seconds
        started = time.perf_counter()
        yield from collect(*args)
        seconds += time.perf_counter() - started

    EvidenceShards.collect = timed  # type: ignore[method-assign]
    try:
        run = runner.run_job(job, output, [load_protocol("native")], device=device, batch_size=batch_size)
    finally:
        EvidenceShards.collect = collect  # type: ignore[method-assign]
    return float(run.about.cost.fit_seconds or 0.0), seconds


if __name__ == "__main__":
    main()
