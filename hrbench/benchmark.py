"""One job from images to records: fit, predict, evidence, metrics, pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tifffile
import torch
from safetensors.torch import load_file, save_file

from hrbench.data.sample import Category, Sample
from hrbench.errors import HrbenchError
from hrbench.evidence import Calibration, Collection, Evidence, EvidenceCollector, Scores
from hrbench.imaging import read_mask
from hrbench.inference import NativeMaps, predict
from hrbench.method import Method, all_options, check_options, find_preset, load_method
from hrbench.metrics import METRIC_COLUMNS, automatic_threshold, compute
from hrbench.origin import device_name, environment, peak_memory
from hrbench.pictures import draw_pictures
from hrbench.progress import track
from hrbench.protocol import Protocol
from hrbench.store import RECORD_COLUMNS, SCHEMA_VERSION, Run, atomic, safe_name
from hrbench.training import Fit, ViewedNormals, learnt_state, load_learnt_state, seeded
from hrbench.views import View

__all__ = [
    "Job",
    "collections_of",
    "finish_run",
    "make_job",
    "rescore",
    "run_job",
    "sample_mask",
    "split_normals",
]

log = logging.getLogger("hrbench")

HELD_OUT = 0.1  # share of the normal training images that set thresholds and are never fitted on
CHUNK = 16  # test images per evidence shard: an interrupted prediction loses at most these


@dataclasses.dataclass(frozen=True)
class Job:
    """What identifies a run: the same job in the same output folder is the same run.

    Attributes
    ----------
    category : Category
    method : str
        Reference, see :func:`hrbench.method.load_method`.
    preset : str
    options : Mapping
        Complete configuration of the method's constructor.
    view : View
    seed : int
    """

    category: Category
    method: str
    preset: str
    options: Mapping[str, Any]
    view: View
    seed: int

    @property
    def method_name(self) -> str:
        """Name of the method for people and folders."""
        return Path(self.method).stem if self.method.endswith(".py") else self.method.rpartition(":")[2]

    @property
    def label(self) -> str:
        """Short text for progress bars."""
        return f"{self.category.name} {self.method_name} {self.view.text} seed {self.seed}"

    @property
    def weights(self) -> str:
        """Where the backbone's weights come from: ``pretrained``, ``random``, a file's name, or ``none``."""
        weights = str(self.options.get("weights", "none"))
        return Path(weights).name if Path(weights).is_file() else weights

    @property
    def name(self) -> str:
        """Folder name of the run: readable, and unique by a digest of all that identifies it."""
        options = {key: _identity(key, value) for key, value in self.options.items()}
        identity = [self.category.digest, self.method_name, options, self.view.text, self.seed]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
        return safe_name(f"{self.method_name}-{self.preset}-s{self.seed}-{digest[:8]}")

    def folder(self, output: Path) -> Path:
        """Return where the run is kept below `output`."""
        return output / "runs" / safe_name(self.category.dataset) / safe_name(self.category.name) / self.name


def make_job(
    category: Category,
    method: str,
    *,
    preset: str,
    view: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Job:
    """Check a job's names against what exists and fill in the preset.

    Raises
    ------
    HrbenchError
        For an unknown method, preset, option or a malformed view.
    """
    cls = load_method(method)
    chosen = find_preset(cls, method, preset)
    complete = all_options(cls, check_options(cls, method, {**chosen.options, **(options or {})}))
    return Job(category, method, preset, complete, View.parse(view or chosen.view), seed)


def split_normals(category: Category) -> tuple[list[Sample], list[Sample]]:
    """Split the normal training images into those to fit and those held out, the same for every method and seed."""
    train = list(category.train)
    if len(train) < 2:
        raise HrbenchError(
            f"category {category.name!r}: {len(train)} normal training images, expected at least 2 (one is held out)"
        )
    held = max(1, round(HELD_OUT * len(train)))
    chosen = set(np.random.default_rng(0).permutation(len(train))[:held].tolist())
    kept = [sample for index, sample in enumerate(train) if index not in chosen]
    return kept, [train[index] for index in sorted(chosen)]


def run_job(
    job: Job,
    output: Path,
    protocols: Sequence[Protocol],
    *,
    device: torch.device,
    batch_size: int = 8,
    save_maps: bool = False,
) -> Run:
    """Do a job, or what is left of it, and return the run; one that is done already is returned as it is.

    Weights, evidence shards and at last ``run.json`` are written as they are finished, so a killed run continues
    where it was and ends with the same evidence.

    Parameters
    ----------
    job : Job
    output : Path
    protocols : sequence of Protocol
        Those that agree on how evidence is collected share it; the first is the one that pictures and the recorded
        threshold follow.
    device : torch.device
    batch_size : int
        Tiles per forward pass at prediction.
    save_maps : bool
        Also write each native anomaly map as float32 TIFF.

    Raises
    ------
    HrbenchError
        For a bad file or option; what was finished before stays.
    """
    folder = job.folder(output)
    if (folder / "run.json").is_file():
        log.info("%s: done before, %s", job.label, folder)
        return rescore(Run(folder), protocols)
    partial = folder / "partial"
    partial.mkdir(parents=True, exist_ok=True)
    fit_samples, held_out = split_normals(job.category)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    with seeded(job.seed):
        method = load_method(job.method)(**job.options).to(device)
        job.view.check_multiple(method.multiple, job.method_name)
        fit_seconds = _fit(job, method, fit_samples, held_out, folder, partial, device)

        def maps(samples: Sequence[Sample]) -> Iterator[NativeMaps]:
            return predict(method, samples, job.view, device, batch_size=batch_size)

        ways = collections_of(protocols, method.image_score)
        held = track(maps(held_out), f"{job.label} held-out", total=len(held_out), unit="img")
        calibrations = Calibration.of((_finish(method, item) for item in held), [way.side for way in ways])
        evidence, cost = _collect(job, method, maps, folder, ways, save_maps=save_maps)
    evidence = [
        dataclasses.replace(part, calibration=calibration)
        for part, calibration in zip(evidence, calibrations, strict=True)
    ]
    config = {
        **_describe(job, method),
        "device": device_name(device),
        "cost": {"fit_seconds": fit_seconds, **cost, "peak_memory_mib": peak_memory(device)},
    }
    run = finish_run(
        folder, job.category, evidence, protocols, config, lambda sample: _finish(method, next(maps([sample])))
    )
    shutil.rmtree(partial)
    return run


def collections_of(protocols: Sequence[Protocol], method_rule: str, *, exact: bool = False) -> list[Collection]:
    """Return the different ways in which evidence must be collected for `protocols`, that of the first one first."""
    return list(dict.fromkeys(Collection.of(protocol, method_rule, exact=exact) for protocol in protocols))


def rescore(run: Run, protocols: Sequence[Protocol]) -> Run:
    """Return the run with records under all `protocols`; what is missing is computed from its evidence.

    Raises
    ------
    HrbenchError
        If a protocol needs evidence that the run did not collect.
    """
    known = run.config["protocols"]
    new = [p for p in protocols if known.get(p.name, {}).get("sha256") != p.digest]
    if not new:
        return run
    names = [protocol.name for protocol in new]
    own = run.records.drop(columns=["protocol", *METRIC_COLUMNS]).iloc[0].to_dict()
    tables = [compute(run.load_evidence(protocol), protocol).assign(**own, protocol=protocol.name) for protocol in new]
    kept = run.records[~run.records["protocol"].isin(names)]
    _write_records(run.folder, [kept, *tables])
    config = {**run.config, "protocols": known | _protocol_digests(new)}
    _write_config(run.folder, config)
    return Run(run.folder)


def finish_run(
    folder: Path,
    category: Category,
    evidence: Sequence[Evidence],
    protocols: Sequence[Protocol],
    config: Mapping[str, Any],
    anomaly_map: Callable[[Sample], Scores],
) -> Run:
    """Write evidence, records, pictures and at last ``run.json`` of a run.

    Parameters
    ----------
    folder : Path
        Its name is the run's.
    category : Category
    evidence : sequence of Evidence
        One per way of collecting; the first serves the first protocol.
    protocols : sequence of Protocol
    config : Mapping
        What ``run.json`` says beyond dataset, protocols, threshold and environment: at least method, view, seed,
        device and cost.
    anomaly_map : callable
        Gives the native map of a test sample, for the pictures.
    """
    method = config["method"]
    own = {
        "run": folder.name,
        "dataset": category.dataset,
        "category": category.name,
        "method": method["name"],
        "preset": method["preset"],
        "view": config["view"],
        "weights": method["weights_source"],
        "seed": config["seed"],
        "ci_low": float("nan"),
        "ci_high": float("nan"),
    }
    tables = []
    for protocol in protocols:
        fitting = next(part for part in evidence if part.collection.serves(protocol))
        tables.append(compute(fitting, protocol).assign(**own, protocol=protocol.name))
    for part in evidence:
        part.save(folder / "evidence" / part.collection.name)
    _write_records(folder, tables)
    first = evidence[0]
    draw_pictures(folder / "pictures", first, category, protocols[0], anomaly_map)
    calibration, rule = first.calibration, protocols[0].threshold
    complete = {
        "schema": SCHEMA_VERSION,
        "run": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": {
            "name": category.dataset,
            "category": category.name,
            "index_sha256": category.digest,
            "train": len(category.train),
            "held_out": calibration.images if calibration else 0,
            "test": len(category.test),
            "test_defective": sum(sample.label for sample in category.test),
        },
        "protocols": _protocol_digests(protocols),
        "evidence": [
            {"name": part.collection.name, "collection": dataclasses.asdict(part.collection)} for part in evidence
        ],
        "threshold": {
            "rule": rule.rule,
            "value": automatic_threshold(first, rule),
            "normal_images": calibration.images if calibration else 0,
        },
        "environment": environment(),
        **config,
    }
    _write_config(folder, complete)
    return Run(folder)


def _protocol_digests(protocols: Sequence[Protocol]) -> dict[str, dict[str, Any]]:
    return {p.name: {"version": p.version, "sha256": p.digest} for p in protocols}


def _write_records(folder: Path, tables: Sequence[pd.DataFrame]) -> None:
    with atomic(folder / "records.parquet") as path:
        pd.concat(tables, ignore_index=True)[list(RECORD_COLUMNS)].to_parquet(path, index=False)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    with atomic(folder / "run.json") as path:
        path.write_text(json.dumps(config, indent=1), encoding="utf-8")


def _fit(
    job: Job,
    method: Method,
    fit_samples: list[Sample],
    held_out: list[Sample],
    folder: Path,
    partial: Path,
    device: torch.device,
) -> float:
    """Fit and calibrate the method, or load what an earlier attempt learnt; return the seconds it took."""
    weights, timing = folder / "weights.safetensors", partial / "fit.json"
    if weights.is_file() and timing.is_file():
        load_learnt_state(method, load_file(weights))
        return float(json.loads(timing.read_text(encoding="utf-8"))["seconds"])
    started = time.perf_counter()
    fit = Fit(
        method,
        held_out=ViewedNormals(held_out, job.view),
        seed=job.seed,
        device=device,
        checkpoint=partial / "fit.pt",
        label=job.label,
    )
    method.train()
    method.fit(ViewedNormals(fit_samples, job.view), fit)
    method.eval()
    if type(method).calibrate is not Method.calibrate:
        method.calibrate(item.maps for item in predict(method, held_out, job.view, device))
    seconds = time.perf_counter() - started
    with atomic(timing) as path:
        path.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    with atomic(weights) as path:
        save_file(learnt_state(method), path)
    (partial / "fit.pt").unlink(missing_ok=True)
    return seconds


def _collect(
    job: Job,
    method: Method,
    maps: Callable[[Sequence[Sample]], Iterator[NativeMaps]],
    folder: Path,
    ways: Sequence[Collection],
    *,
    save_maps: bool,
) -> tuple[list[Evidence], dict[str, float]]:
    """Predict the test images chunk by chunk into evidence shards, and join them.

    A batch never crosses a chunk, so that a continued run forms the same batches and ends with the same bits.
    """
    test = job.category.test
    shards = [folder / "partial" / f"evidence-{start:06d}" for start in range(0, len(test), CHUNK)]
    left = [number for number, shard in enumerate(shards) if not shard.is_dir()]

    def collect() -> Iterator[int]:
        for number in left:
            collectors = [EvidenceCollector(way) for way in ways]
            for item in maps(test[number * CHUNK : (number + 1) * CHUNK]):
                scores = _finish(method, item)
                sample = item.sample
                mask = sample_mask(sample, scores.shape)
                for collector in collectors:
                    collector.update(
                        sample.id,
                        scores,
                        mask,
                        defect_type=sample.defect_type,
                        decision=item.decision,
                        seconds=item.seconds,
                    )
                if save_maps:
                    _write_map(folder / "maps", sample, scores)
                yield scores.size
            with atomic(shards[number]) as path:
                for collector in collectors:
                    collector.result().save(path / collector.collection.name)

    started = time.perf_counter()
    done = len(test) - sum(len(test[number * CHUNK : (number + 1) * CHUNK]) for number in left)
    pixels = sum(track(collect(), f"{job.label} predict", total=len(test), initial=done, unit="img"))
    wall = time.perf_counter() - started
    evidence = [Evidence.merge([Evidence.load(shard / way.name) for shard in shards]) for way in ways]
    milliseconds = 1e3 * evidence[0].images["seconds"].to_numpy()
    warm = milliseconds[1:] if milliseconds.size > 1 else milliseconds
    cost = {
        "predict_seconds": wall,
        "megapixels_per_second": pixels / 1e6 / wall if pixels else float("nan"),
        "ms_median": float(np.median(warm)),
        "ms_p95": float(np.quantile(warm, 0.95)),
    }
    return evidence, cost


def sample_mask(sample: Sample, size: tuple[int, ...]) -> Any:
    """Return the (H, W) bool mask of a defective sample, None for a normal one.

    Raises
    ------
    HrbenchError
        If the mask is of another size, or has no defect pixel.
    """
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask, (size[0], size[1]))
    if not mask.any():
        raise HrbenchError(f"{sample.mask}: no defect pixel, but {sample.id} is labelled defective")
    return mask


def _finish(method: Method, item: NativeMaps) -> Scores:
    """Return the method's anomaly map of one image as an array, checked."""
    final = method.finish(item.maps)
    array: Scores = final.float().cpu().numpy()
    size = next(iter(item.maps.values())).shape
    if array.shape != tuple(size) or not np.isfinite(array).all():
        problem = "NaN or infinite pixels" if array.shape == tuple(size) else f"shape {array.shape}"
        raise HrbenchError(
            f"{item.sample.id}: {type(method).__name__} gave an anomaly map with {problem}, "
            f"expected finite scores of shape {tuple(size)}"
        )
    return array


def _write_map(folder: Path, sample: Sample, scores: Scores) -> None:
    parts = [safe_name(part) for part in Path(sample.id).with_suffix(".tiff").parts]
    with atomic(folder.joinpath(*parts)) as path:
        tifffile.imwrite(path, scores, compression="zlib")


def _describe(job: Job, method: Method) -> dict[str, Any]:
    parameters = list(method.parameters())
    return {
        "method": {
            "name": job.method_name,
            "title": method.title or job.method_name,
            "paper": method.paper,
            "reference": job.method,
            "preset": job.preset,
            "options": {key: _identity(key, value) for key, value in job.options.items()},
            "weights": method.weights_record(),
            "weights_source": job.weights,
            "weights_licence": method.weights_licence,
            "parameters": sum(item.numel() for item in parameters),
            "trainable": sum(item.numel() for item in parameters if item.requires_grad),
        },
        "view": job.view.text,
        "seed": job.seed,
    }


def _identity(key: str, value: Any) -> Any:
    """Return an option as it is recorded: a weights file by its name and content, so that paths may differ."""
    if key == "weights" and isinstance(value, str | Path) and Path(value).is_file():
        digest = hashlib.sha256(Path(value).read_bytes()).hexdigest()
        return f"{Path(value).name} sha256:{digest}"
    return value
