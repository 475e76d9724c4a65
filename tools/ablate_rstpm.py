"""Compare RSTPM's discriminator modes and pseudo-anomaly generators per defect size.

The students are fitted once per category; on them one discriminator per generator; each is read out in the modes
``mul`` and ``only``, the students alone as ``off``. So all cells share their students, and differences to ``off`` are
paired: both are resampled on the same images. One table per category, then one of the mean over categories.

    hrbench data make DATA --categories brushed_metal weave --size 384 --train 16 --test-good 12 --test-defective 40
    python tools/ablate_rstpm.py DATA --weights mobilenetv2_100.pth
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd
import torch

from hrbench._util.resources import methods_package
from hrbench.data import Category, load_dataset
from hrbench.data.sample import sample_mask
from hrbench.engine.inference import predict
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, mix, seeded
from hrbench.engine.views import View
from hrbench.evidence import EvidenceCollector, EvidenceSpec
from hrbench.metrics.bootstrap import Replicates, average, paired_difference, replicates
from hrbench.protocol import load_protocol
from hrbench.runs.job import split_normals

methods_package()
from hrbench.methods.rstpm import RSTPM, combine_levels, gate  # noqa: E402

CPU = torch.device("cpu")
PROTOCOL = load_protocol("native")
FPR_LIMIT = 0.05
SUBSETS = ("tiny", "small", "medium", "large", "all")
GENERATORS = ("perlin", "polygon", "patches", "tiny", "sized", "mixture")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all configurations share."""

    backbone: str
    weights: str
    view: View
    strides: tuple[int, ...]
    steps: int
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--generators", nargs="+", default=GENERATORS)
    parser.add_argument("--backbone", default="mobilenetv2_100", help="of both teachers")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--view", type=View.parse, default=View.parse("tiled:256:64"))
    parser.add_argument("--strides", type=int, nargs="+", default=(4, 8))
    parser.add_argument("--steps", type=int, default=120, help="of the students and of each discriminator, batch 4")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    setup = Setup(args.backbone, args.weights, args.view, tuple(args.strides), args.steps, args.seed)
    every: list[dict[str, Replicates]] = []
    for category in load_dataset("folder", args.root).select(args.categories):
        results: dict[str, Replicates] = {}
        students = make(setup)
        fit(students, category, setup, stage="students")
        for generator in args.generators:
            method = make(setup, anomalies=generator)
            method.student.load_state_dict(students.student.state_dict())
            method.second_student.load_state_dict(students.second_student.state_dict())
            fit(method, category, setup, stage="discriminator")
            found = read_out(method, category, setup.view)
            results.setdefault("off", found["off"])
            results |= {f"{mode}, {generator}": found[mode] for mode in ("mul", "only")}
        print(f"\n{category.name}\n\n{table(results)}\n", flush=True)
        every.append(results)
    if len(every) > 1:
        means = {name: average([results[name] for results in every]) for name in every[0]}
        print(f"\nmean of {len(every)} categories\n\n{table(means)}\n")


def make(setup: Setup, anomalies: str = "mixture") -> RSTPM:
    with seeded(setup.seed):  # the same students and the same discriminator to begin with
        return RSTPM(
            teacher=setup.backbone,
            second_teacher=setup.backbone,
            weights=setup.weights,
            second_weights=setup.weights,
            strides=setup.strides,
            anomalies=anomalies,
            width=8,
            batch_size=4,
            steps=setup.steps,
            discriminator_lr=1e-3,
            discriminator_batch_size=4,
            discriminator_steps=setup.steps,
        )


def fit(method: RSTPM, category: Category, setup: Setup, *, stage: str) -> None:
    normals, held_out = (ViewedNormals(samples, setup.view) for samples in split_normals(category))
    context = Fit(method, held_out=held_out, seed=setup.seed, device=CPU, label=category.name)
    method.train()
    with seeded(mix(setup.seed, 1)):
        (method.fit_students if stage == "students" else method.fit_discriminator)(normals, context)


@torch.no_grad()
def read_out(method: RSTPM, category: Category, view: View) -> dict[str, Replicates]:
    """Return the bootstrap replicates of every mode, of one prediction of the test images."""
    collectors = {mode: EvidenceCollector(EvidenceSpec.of(PROTOCOL)) for mode in ("off", "mul", "only")}
    for item in predict(method, category.test, view, CPU):
        *levels, logit = item.maps.values()
        fused = combine_levels(levels, "prod")
        mask = sample_mask(item.sample, fused.shape)
        for mode, scores in (("off", fused), ("mul", gate(fused, logit)), ("only", logit)):
            collectors[mode].update(item.sample.id, scores.numpy(), mask, defect_type=item.sample.defect_type)
    return {mode: replicates(collector.result(), PROTOCOL) for mode, collector in collectors.items()}


def table(results: dict[str, Replicates]) -> str:
    """Return Markdown: AUPRO per size subset with its interval, below it the paired difference to ``off``."""
    lines = [f"| AUPRO@{FPR_LIMIT} | {' | '.join(SUBSETS)} |", "|" + "---|" * (len(SUBSETS) + 1)]
    for name, result in results.items():
        own, compared = pick(result.intervals()), pick(paired_difference(result, results["off"]))
        values = pick(result.keys.assign(value=result.estimate))["value"]
        cells, below = [], []
        for subset in SUBSETS:
            cells.append(f"{values[subset]:.3f} [{own.ci_low[subset]:.3f}, {own.ci_high[subset]:.3f}]")
            row = compared.loc[subset]
            below.append(f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if name != "off":
            lines.append(f"| minus off | {' | '.join(below)} |")
    return "\n".join(lines)


def pick(frame: pd.DataFrame) -> pd.DataFrame:
    kept = (frame["metric"] == "aupro") & (frame["fpr_limit"] == FPR_LIMIT) & frame["subset"].isin(SUBSETS)
    return frame[kept].set_index("subset")


if __name__ == "__main__":
    main()
