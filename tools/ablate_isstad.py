"""Which drawn defects teach ISSTAD to find which real ones: one run per generator, a table by defect size.

Makes the procedural dataset, trains ISSTAD with each generator of pseudo-anomalies (stage 1 is the same for all: equal
seeds, equal batches) and prints AUPRO at a false-positive rate of 5 % in every size bin, mean over categories, with
95 % intervals over images; then the paired difference of the last generator to each other. Runs that are done are not
done again. On one core:

    OMP_NUM_THREADS=1 python tools/ablate_isstad.py /tmp/ablation
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hrbench.data import load_dataset, make_dataset
from hrbench.metrics.bootstrap import Replicates, average, paired_difference, replicates
from hrbench.protocol import load_protocol
from hrbench.runs.job import make_job
from hrbench.runs.runner import run_job

GENERATORS = ("polygon", "patches", "mixture")
SUBSETS = ("all", "tiny", "small", "medium", "large")
LIMIT = 0.05
NETWORK = {
    "backbone": "test_vit",
    "weights": "random",
    "patch": 8,
    "decoder_width": 64,
    "mae_lr": 2e-3,
    "batch_size": 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--categories", nargs="+", default=["bolts", "wood_grain"])
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mae-steps", type=int, default=50, help="of stage 1 (default: 50)")
    parser.add_argument("--steps", type=int, default=200, help="of stage 2 (default: 200)")
    arguments = parser.parse_args()

    root = make_dataset(
        arguments.folder / "data",
        categories=arguments.categories,
        size=(512, 512),
        train=12,
        test_good=8,
        test_defective=40,
    )
    protocol = load_protocol("native")
    parts: dict[str, list[Replicates]] = {generator: [] for generator in arguments.generators}
    for category in load_dataset("folder", root).categories:
        for generator, found in parts.items():
            options = {
                **NETWORK, "corruption": generator, "mae_steps": arguments.mae_steps, "steps": arguments.steps
            }  # fmt: skip
            job = make_job(category, "isstad", preset="demo", options=options, seed=arguments.seed)
            run = run_job(job, arguments.folder, [protocol], device=torch.device("cpu"))
            found.append(replicates(run.evidence, protocol))
            print(row(f"{category.name}, {generator}", found[-1]), flush=True)
    means = {generator: average(found) for generator, found in parts.items()}
    print("\n| mean over categories | " + " | ".join(SUBSETS) + " |\n|" + "---|" * (len(SUBSETS) + 1))
    for generator, mean in means.items():
        print(row(f"`{generator}`", mean))
    *others, last = means
    for other in others:
        print(difference(f"`{last}` - `{other}`", means[last], means[other]))


def row(name: str, found: Replicates) -> str:
    """Return a line of the table: value and interval per size bin."""
    intervals = found.intervals()
    cells = []
    for subset in SUBSETS:
        k = found.row("aupro", subset, LIMIT)
        low, high = intervals.loc[k, ["ci_low", "ci_high"]]
        cells.append(f"{found.estimate[k]:.3f} [{low:.3f}, {high:.3f}]")
    return f"| {name} | " + " | ".join(cells) + " |"


def difference(name: str, a: Replicates, b: Replicates) -> str:
    """Return a line of the table: paired difference and interval per size bin."""
    frame = paired_difference(a, b).set_index(["metric", "subset", "fpr_limit"])
    chosen = [frame.loc[("aupro", subset, LIMIT)] for subset in SUBSETS]
    cells = [f"{item.difference:+.3f} [{item.ci_low:+.3f}, {item.ci_high:+.3f}]" for item in chosen]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
