"""Hold `knn` and `gaussian` against anomalib's PatchCore and PaDiM, on equal features.

    pip install 'anomalib>=2.7,<2.8'
    python tools/compare_baselines.py [--parts equal bank cost] [--write results/compare_baselines.md]

``equal``
    The same network, with the same random weights, in both: features, distances, the reweighted image score, the
    greedy choice, and the Gaussians of every position. Largest difference, relative to the largest value.
``bank``
    Two categories of procedural images of 256 px, bundled ResNet18. The bank is chosen by anomalib's coreset of all
    features, or by `knn` of a sample of fixed size; the rest is the same. AUPRO@0.05, and the paired difference.
``cost``
    100 training images of 2048 x 2048 px, tiles of 512 px. `knn` is run; PatchCore's memory follows from the number of
    features, its time from a step of its choice that is measured on as many of them as fit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from anomalib.models.components.sampling import KCenterGreedy
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from torch import Tensor

import hrbench
from hrbench._util.files import atomic
from hrbench.data import load_dataset, make_dataset
from hrbench.data.sample import Category, sample_mask
from hrbench.engine.normals import ViewedNormals
from hrbench.engine.training import Fit, seeded
from hrbench.engine.views import View
from hrbench.methods.gaussian import Gaussian
from hrbench.methods.knn import KNN, Reservoir, covering, isolation, nearest
from hrbench.testing import StackedNormals

CPU = torch.device("cpu")
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables there, too")
    args = parser.parse_args()
    lines: list[str] = []
    for part in args.parts:
        for line in PARTS[part]():
            print(line, flush=True)
            lines.append(line)
    if args.write:
        with atomic(args.write) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@torch.no_grad()
def equal() -> Iterator[str]:
    yield "## Equal features\n"
    yield "| | largest relative difference |\n|---|---|"
    torch.manual_seed(0)
    normals, tests = torch.rand(40, 3, 128, 128), torch.rand(4, 3, 128, 128)
    options = {"weights": "random", "backbone": "resnet18", "normalise": False, "padding": "zeros"}
    knn = hrbench.create_method("knn", **options, strides=(8, 16)).eval()
    assert isinstance(knn, KNN)
    theirs = PatchcoreModel(("layer2", "layer3"), "resnet18", pre_trained=False)
    yield from _same_network(theirs.feature_extractor.feature_extractor, knn)
    normalised = (normals - knn.features.backbone.mean) / knn.features.backbone.std
    theirs.train()
    theirs.feature_extractor.eval()
    expected = theirs(normalised)
    found = knn.features(normals).permute(0, 2, 3, 1).flatten(0, 2)
    yield f"| features: strides 8 and 16, 3x3 mean, joined | {_apart(found, expected):.1e} |"

    knn.bank = theirs.memory_bank = expected[torch.randperm(len(expected))[:500]]
    theirs.eval()
    vectors = knn.features(tests).permute(0, 2, 3, 1).flatten(0, 2)
    scores, places = theirs.nearest_neighbors(vectors, 1)
    distances, own_places = nearest(vectors, knn.bank, 1)
    yield f"| distance to the nearest | {_apart(distances[:, 0], scores):.1e} |"
    image_scores = theirs.compute_anomaly_score(scores.reshape(4, -1), places.reshape(4, -1), vectors)
    weights = isolation(vectors, knn.bank, own_places[:, 0], 9).reshape(4, -1)
    highest = distances.reshape(4, -1).max(dim=1)
    weighed = highest.values * weights.gather(1, highest.indices[:, None])[:, 0]
    yield f"| reweighted image score, 9 neighbours | {_apart(weighed, image_scores):.1e} |"

    sampler = KCenterGreedy(expected, 0.05)
    sampler.model = _Unprojected()
    torch.manual_seed(1)
    start = int(torch.randint(len(expected), (1,)))
    torch.manual_seed(1)
    chosen = sampler.select_coreset_idxs()
    agree = sum(a == b for a, b in zip(chosen, covering(expected, start, chosen).tolist(), strict=True))
    yield f"| greedy choice, {len(chosen)} of {len(expected)}, not projected | {agree} of {len(chosen)} equal |"

    padim = PadimModel("resnet18", pre_trained=False)
    gaussian = hrbench.create_method("gaussian", preset="paper", input_size=128, blur=0.0, ridge=0.01 + 1e-5, **{
        name: options[name] for name in ("weights", "backbone")
    }).eval()  # fmt: skip
    assert isinstance(gaussian, Gaussian)
    yield from _same_network(padim.feature_extractor.feature_extractor, gaussian)
    gaussian.chosen.copy_(padim.idx)
    padim.memory_bank.append(padim.generate_embedding(padim.feature_extractor(normalised)))
    padim.fit()
    given = StackedNormals(normals)
    gaussian.fit(given, Fit(gaussian, held_out=given, seed=0, device=CPU))
    embedding = padim.generate_embedding(
        padim.feature_extractor((tests - gaussian.features.backbone.mean) / gaussian.features.backbone.std)
    )
    stats = [padim.gaussian.mean, padim.gaussian.inv_covariance]
    distance = padim.anomaly_map_generator.compute_distance(embedding, stats)[:, 0]
    yield f"| Gaussian of every position: the map | {_apart(gaussian.predict(tests).maps['distance'], distance):.1e} |"
    yield ""


def _same_network(theirs: torch.nn.Module, ours: KNN | Gaussian) -> Iterator[str]:
    """Give both the same weights, and statistics that a trained network could have."""
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    found = ours.features.backbone.network.load_state_dict(theirs.state_dict(), strict=False)
    if found.missing_keys:
        yield f"| not in both networks: {found.missing_keys} | |"


class _Unprojected:
    """Stands for anomalib's random projection: the features themselves."""

    def fit(self, features: Tensor) -> None:
        del features

    def transform(self, features: Tensor) -> Tensor:
        return features


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def bank() -> Iterator[str]:
    yield "## Who chooses the bank\n"
    yield "| category | bank | features | of | choice | AUPRO@0.05 | less PatchCore's |\n|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        root = make_dataset(
            Path(folder) / "made", categories=("weave", "wood_grain"), size=(256, 256), train=24, test_good=40,
            test_defective=40,
        )  # fmt: skip
        for category in load_dataset("folder", root).categories:
            yield from _banks(category)
    yield ""


@torch.no_grad()
def _banks(category: Category) -> Iterator[str]:
    view = View.parse("whole:256")
    normals = ViewedNormals(category.train, view)
    with seeded(0):
        method = hrbench.create_method("knn", weights="bundled", backbone="resnet18").eval()
    assert isinstance(method, KNN)
    features = torch.cat([method.features(x[None]).permute(0, 2, 3, 1).flatten(0, 2) for x in normals])
    results = []
    for name, choose in CHOICES.items():
        with seeded(0):
            started = time.perf_counter()
            method.bank, drawn = choose(features)
            seconds = time.perf_counter() - started
        maps, masks = [], []
        for sample, image in zip(category.test, ViewedNormals(category.test, view), strict=True):
            found = method.predict(image[None]).maps["distance"]
            maps.append(torch.nn.functional.interpolate(found[None], (256, 256), mode="bilinear")[0, 0].numpy())
            masks.append(sample_mask(sample, (256, 256)))
        result = hrbench.evaluate(maps, masks)
        results.append(result)
        low, high = result.interval("aupro")
        row = f"{category.name} | {name} | {len(method.bank):,} | {drawn:,} | {seconds:.0f} s"
        row += f" | {result.value('aupro'):.3f} [{low:.3f}, {high:.3f}] | "
        if len(results) > 1:
            compared = hrbench.compare(result, results[0])
            low, high = compared.interval("aupro")
            row += f"{compared.difference('aupro'):+.3f} [{low:+.3f}, {high:+.3f}]"
        yield f"| {row} |"


def _coreset(features: Tensor) -> tuple[Tensor, int]:
    """Return what anomalib's PatchCore keeps of all features."""
    return KCenterGreedy(features, 0.01).sample_coreset(), len(features)


def _own(candidates: int, size: int, projected: int) -> Callable[[Tensor], tuple[Tensor, int]]:
    """Return `knn`'s choice: a sample of fixed size, of which those are kept that cover it best."""

    def choose(features: Tensor) -> tuple[Tensor, int]:
        random = torch.Generator().manual_seed(0)
        reservoir = Reservoir(candidates, random)
        for part in features.split(1 << 15):
            reservoir.update(part)
        drawn = reservoir.vectors
        compared = drawn @ torch.randn(drawn.shape[1], projected, generator=random)
        return drawn[covering(compared, 0, range(size))], len(drawn)

    return choose


CHOICES: dict[str, Callable[[Tensor], tuple[Tensor, int]]] = {
    "PatchCore's: anomalib's of all, 1 %": _coreset,
    "knn's of all, as many": _own(200_000, 983, 128),
    "knn's of a fifth, as many": _own(20_000, 983, 128),
    "knn `native`: all of these are drawn": _own(200_000, 10_000, 128),
    "knn `demo`": _own(20_000, 2000, 64),
}


def cost() -> Iterator[str]:
    yield "## 100 images of 2048 x 2048 px in tiles of 512 px\n"
    view, images = "tiled:512:128", 100
    tiles = images * len(View.parse(view).looks[0].place((2048, 2048)))
    with tempfile.TemporaryDirectory() as folder:
        root = make_dataset(
            Path(folder) / "made",
            categories=("weave",),
            size=(2048, 2048),
            train=images,
            test_good=1,
            test_defective=2,
        )
        study = hrbench.run(
            "folder",
            ["knn"],
            root=root,
            output=Path(folder) / "runs",
            views=[view],
            held_out=0,
            options={"knn": {"weights": "bundled", "backbone": "resnet18"}},
        )
        (run,) = study.runs
        took = run.about.cost
    with seeded(0):
        method = hrbench.create_method("knn", weights="bundled", backbone="resnet18").eval()
    assert isinstance(method, KNN)
    width, places = method.features.width, tiles * 128 * 128
    kept = places // 10
    sample = torch.randn(200_000, 512)
    sampler = KCenterGreedy(sample, 0.001)
    sampler.features = sample
    sampler.update_distances(0)
    started = time.perf_counter()
    for _ in range(20):
        sampler.update_distances(sampler.get_new_idx())
    step = (time.perf_counter() - started) / 20 / len(sample)  # per feature, in the 512 or so directions it projects to
    query, part = torch.randn(1024, width), torch.randn(20_000, width)
    started = time.perf_counter()
    PatchcoreModel.euclidean_dist(query, part).min(1)
    pair = (time.perf_counter() - started) / len(query) / len(part)
    yield "| | `knn`, measured | PatchCore, 10 % of all features |\n|---|---|---|"
    yield f"| features seen | {places:,} | {places:,} |"
    yield f"| held while fitted | 200,000 | all: {places * width * 4 / GIB:.0f} GiB, twice while they are joined |"
    yield f"| bank | {10_000:,} ({10_000 * width * 4 / GIB:.3f} GiB) | {kept:,} ({kept * width * 4 / GIB:.1f} GiB) |"
    yield f"| peak memory of the process | {(took.fit_peak_host_mib or 0) / 1024:.1f} GiB | |"
    yield f"| fit | {took.fit_seconds:.0f} s | choice alone {step * places * kept / 86400 / 365:.1f} years |"
    per_image = pair * (places / images) * kept
    yield f"| prediction, an image | {(took.ms_median or 0) / 1000:.1f} s | distances alone {per_image / 60:.0f} min |"
    yield ""


PARTS: dict[str, Callable[[], Iterator[str]]] = {"equal": equal, "bank": bank, "cost": cost}


if __name__ == "__main__":
    main()
