"""Compare backbones by what methods make of them: random, bundled and, where there is a file, ImageNet weights.

    hrbench data make work/procedural --size 384 --train 8 --test-good 8 --test-defective 36 --seed 1
        --categories weave brushed_metal circuit_board bolts
    python tools/compare_weights.py work/procedural photographs --output work/compare
        --file mobilenetv2_100=weights/mobilenetv2_100.pth --write results/backbones

Every configuration runs through the suite like any other method (FastFlow at strides 4 and 8 with 150 steps; of the
same features a Gaussian, and nearest neighbours by direction), may be interrupted and goes on. The tables hold means
over a dataset's categories and seeds with 95 % bootstrap intervals over images, and paired differences of the bundled
weights to the others of the same method on the same images.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hrbench.data import load_dataset
from hrbench.metrics import bootstrap
from hrbench.metrics.bootstrap import Replicates
from hrbench.protocol import load_protocol
from hrbench.runs.job import make_job
from hrbench.runs.record import RunRecord
from hrbench.runs.runner import run_job

METRICS = {
    "pixel AUROC": ("pixel_auroc", "all", None),
    "AUPRO@0.05": ("aupro", "all", 0.05),
    "AUPRO@0.05, smallest quarter": ("aupro", "tiny", 0.05),
}
VIEW = "tiled:256:64"
PROBES = {"gaussian": "pretrain.adapter:Gaussian", "nearest": "pretrain.adapter:Nearest"}
METHODS = (*PROBES, "fastflow")


@dataclasses.dataclass(frozen=True)
class Contender:
    """A backbone with weights, under the name of the tables."""

    name: str
    backbone: str
    weights: str


def contenders(files: list[str]) -> list[Contender]:
    """Return ResNet18 with random and with bundled weights, and per ``model=path`` that with the file's weights."""
    found = [Contender(f"ResNet18, {weights}", "resnet18", weights) for weights in ("random", "bundled")]
    for text in files:
        model, _, path = text.partition("=")
        found.append(Contender(f"{model}, {Path(path).name}", model, path))
    names = [one.name for one in found]
    twins = {name for name in names if names.count(name) > 1}
    if twins:
        sys.exit(
            f"--file: several are {', '.join(sorted(twins))}; expected files of different names, as rows have them"
        )
    return found


def measure(
    root: Path, contender: Contender, method: str, output: Path, *, steps: int, seeds: list[int], device: torch.device
) -> tuple[Replicates, RunRecord]:
    """Run a method on all categories of a dataset; return the mean's replicates and the facts of the last run."""
    protocol = load_protocol("native")
    options: dict[str, Any] = {"backbone": contender.backbone, "weights": contender.weights, "strides": [4, 8]}
    preset = "probe"
    if method == "fastflow":
        preset = "native"
        options |= {"steps": steps, "batch_size": 4, "flow_steps": 4, "kernels": [3, 1]}
    parts = []
    for category, seed in itertools.product(load_dataset("folder", root).categories, seeds):
        job = make_job(category, method, preset=preset, view=VIEW, options=options, seed=seed)
        run = run_job(job, output, [protocol], device=device)
        parts.append(bootstrap.replicates(run.evidence, protocol))
        about = run.about
    return bootstrap.average(parts), about


def tables(results: dict[tuple[str, str, str], tuple[Replicates, RunRecord]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return values with intervals, and paired differences bundled minus each other of the same dataset and method."""
    values, differences = [], []
    for (dataset, method, name), (found, about) in results.items():
        ends = found.intervals()
        weights = ", ".join(about.method.weights.values())
        speed = about.cost.megapixels_per_second
        for label, key in METRICS.items():
            row = found.row(*key)
            low, high = ends.loc[row, ["ci_low", "ci_high"]]
            values.append((dataset, method, name, label, found.estimate[row], low, high, weights, speed))
        if name == "ResNet18, bundled":
            continue
        frame = bootstrap.paired_difference(results[dataset, method, "ResNet18, bundled"][0], found)
        for label, (metric, subset, limit) in METRICS.items():
            same = frame["fpr_limit"].isna() if limit is None else frame["fpr_limit"] == limit
            (line,) = frame[(frame["metric"] == metric) & (frame["subset"] == subset) & same].to_dict("records")
            differences.append((dataset, method, name, label, line["difference"], line["ci_low"], line["ci_high"]))
    first, last = ["dataset", "method"], ["metric", "value", "ci_low", "ci_high"]
    return pd.DataFrame(
        values, columns=[*first, "weights", *last, "provenance", "megapixels_per_second"]
    ), pd.DataFrame(differences, columns=[*first, "bundled_minus", *last])


def markdown(values: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Return both tables as text, one row per dataset, method and weights."""
    lines = []
    for frame, who, sign, title in (
        (values, "weights", "", "Value"),
        (differences, "bundled_minus", "+", "Paired difference, bundled minus the other"),
    ):
        columns = ["dataset", "method", who]
        lines += [f"## {title}, with 95 % bootstrap intervals over images", ""]
        lines += ["| " + " | ".join([*columns, *METRICS]) + " |", "|---" * (len(columns) + len(METRICS)) + "|"]
        for names, group in frame.groupby(columns, sort=False):
            rows = group.set_index("metric")
            cells = [
                f"{rows.at[m, 'value']:{sign}.3f} [{rows.at[m, 'ci_low']:{sign}.3f}, {rows.at[m, 'ci_high']:{sign}.3f}]"
                for m in METRICS
            ]
            lines.append("| " + " | ".join([*names, *cells]) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, help="folders in MVTec AD's layout; the name is the folder's")
    parser.add_argument("--output", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--write", type=Path, required=True, help="folder of the tables")
    parser.add_argument(
        "--file", nargs="*", default=[], metavar="MODEL=PATH", help="further backbones with real weights"
    )
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--steps", type=int, default=150, help="of FastFlow (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the tables hold means (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    results = {}
    for root in options.datasets:
        for method in options.methods:
            for contender in contenders(options.file):
                results[root.name, method, contender.name] = measure(
                    root, contender, PROBES.get(method, method), options.output / root.name,
                    steps=options.steps, seeds=options.seeds, device=torch.device(options.device),
                )  # fmt: skip
                print(root.name, method, contender.name, file=sys.stderr, flush=True)
    values, differences = tables(results)
    options.write.mkdir(parents=True, exist_ok=True)
    values.to_csv(options.write / "weights.csv", index=False, float_format="%.5f")
    differences.to_csv(options.write / "weights-differences.csv", index=False, float_format="%.5f")
    (options.write / "weights.md").write_text(markdown(values, differences), encoding="utf-8")
    print(markdown(values, differences))


if __name__ == "__main__":
    main()
