"""The evidence of the test images while they are predicted: chunk by chunk on disk, so that little is ever lost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing

import tifffile

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.data.sample import Sample, content_digest, sample_mask
from hrbench.engine.anomaly_map import AnomalyMap
from hrbench.engine.device import MemoryPeaks, largest_peaks
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import mix
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.imaging import image_size
from hrbench.runs.cost import timing
from hrbench.runs.record import Cost
from hrbench.runs.store import RunFolder

__all__ = ["EvidenceShards"]

CHUNK = 16  # test images per shard: an interrupted prediction loses at most these


class EvidenceShards:
    """The evidence of test images, one shard per chunk of them; shards that an earlier attempt left are kept.

    A batch never crosses a chunk, so that a continued run forms the same batches and ends with the same bits.

    Parameters
    ----------
    folder : RunFolder
    samples : sequence of Sample
        All test images of the job.
    specs : sequence of EvidenceSpec
        How evidence is collected.
    save_maps : bool
        Also write each native map as float32 TIFF.
    """

    def __init__(
        self, folder: RunFolder, samples: Sequence[Sample], specs: Sequence[EvidenceSpec], *, save_maps: bool
    ) -> None:
        self._folder = folder
        self._samples = samples
        self._specs = specs
        self._save_maps = save_maps
        self._chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
        self._shards = [folder.shard(number) for number in range(len(self._chunks))]
        self._left = [number for number in range(len(self._chunks)) if not self._complete(number)]
        self._chunk_of = {sample.id: number for number in self._left for sample in self._chunks[number]}
        self._collectors: list[EvidenceCollector] = []

    @property
    def left(self) -> list[Sample]:
        """The samples that are still to be predicted, in order."""
        return [sample for number in self._left for sample in self._chunks[number]]

    def seeds(self, seed: int) -> dict[int, int]:
        """Return by position in :attr:`left` where a chunk begins, and its own seed: what a method draws there."""
        starts, position = {}, 0
        for number in self._left:
            starts[position] = mix(seed, 1, number + 1)
            position += len(self._chunks[number])
        return starts

    def collect(self, maps: Iterable[AnomalyMap], memory: MemoryPeaks, label: str) -> None:
        """Count the maps of all samples that are left; a thread does so while the next image is predicted."""
        with closing(ahead(lambda item: self._count(item, memory), maps)) as counted:
            done = len(self._samples) - len(self._chunk_of)
            for _ in track(counted, label, total=len(self._samples), initial=done, unit="img"):
                pass

    def merged(self) -> list[Evidence]:
        """Return the evidence of all samples, one for each spec."""
        return [
            Evidence.merge([Evidence.load(shard.evidence(spec.name)) for shard in self._shards]) for spec in self._specs
        ]

    def cost(self, evidence: Evidence) -> Cost:
        """Return what prediction took: the times are in the evidence, the memory beside the shards."""
        pixels = {sample.id: math.prod(image_size(sample.image)) for sample in self._samples}
        files = (shard.memory for shard in self._shards if shard.memory.is_file())
        peaks = largest_peaks(json.loads(path.read_text(encoding="utf-8")) for path in files)
        return Cost(**timing(evidence.images, pixels), **peaks)

    def _complete(self, number: int) -> bool:
        shard, samples = self._shards[number], self._chunks[number]
        if self._save_maps and not all(self._folder.map_of(sample.id).is_file() for sample in samples):
            return False
        if not (shard.images.is_file() and shard.images.read_text(encoding="utf-8") == _digest(samples)):
            return False
        return all(shard.evidence(spec.name).is_dir() for spec in self._specs)

    def _count(self, item: AnomalyMap, memory: MemoryPeaks) -> None:
        sample, scores = item.sample, item.scores()
        if not self._collectors:
            self._collectors = [EvidenceCollector(spec) for spec in self._specs]
        mask = sample_mask(sample, scores.shape)
        for collector in self._collectors:
            collector.update(
                sample.id,
                scores,
                mask,
                defect_type=sample.defect_type,
                decision=item.decision(),
                seconds=item.seconds,
                group=sample.group,
            )
        if self._save_maps:
            with atomic(self._folder.map_of(sample.id)) as path:
                tifffile.imwrite(path, scores, compression="zlib")
        number = self._chunk_of[sample.id]
        if sample is self._chunks[number][-1]:
            self._write(number, memory)
            self._collectors = []

    def _write(self, number: int, memory: MemoryPeaks) -> None:
        shard = self._shards[number]
        if shard.path.is_dir():  # of an attempt with other protocols, or on other images
            shutil.rmtree(shard.path)
        with atomic(shard.path) as path:
            path.mkdir()
            unnamed = type(shard)(path)
            unnamed.images.write_text(_digest(self._chunks[number]), encoding="utf-8")
            unnamed.memory.write_text(json.dumps(memory.record()), encoding="utf-8")
            for collector in self._collectors:
                collector.result().save(unnamed.evidence(collector.spec.name))


def _digest(samples: Sequence[Sample]) -> str:
    """Return what a shard's evidence depends on: the images, and their groups if there are any."""
    groups = [sample.group for sample in samples]
    return content_digest(samples) + (f" {json.dumps(groups)}" if any(groups) else "")
