"""The evidence of the test images while they are predicted: chunk by chunk on disk, so that little is ever lost."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import tifffile

from hrbench._util.files import atomic
from hrbench._util.progress import track
from hrbench.data.sample import Sample, content_digest, sample_mask, sample_regions
from hrbench.engine.anomaly_map import AnomalyMap
from hrbench.engine.prefetch import ahead
from hrbench.engine.training import mix
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence, EvidenceCollector, EvidenceSpec
from hrbench.imaging import image_size
from hrbench.runs.cost import Spent, timing
from hrbench.runs.parcel import Parcel, unpack
from hrbench.runs.store import RunFolder, Shard, text_of

__all__ = ["CHUNK", "EvidenceShards"]

CHUNK = 16  # test images per shard: an interrupted prediction loses at most these


class EvidenceShards:
    """The evidence of test images, one shard per chunk of them; any process may make any of them, in any order.

    A batch never crosses a chunk, and what a method draws there depends on the chunk's number only, so that a shard has
    the same bits whoever makes it.

    Parameters
    ----------
    folder : RunFolder
    samples : sequence of Sample
        All test images of the job.
    specs : sequence of EvidenceSpec
        How evidence is collected.
    seed : int
        Of the job.
    fitted : str
        Digest of what was learnt: shards of another fit do not count.
    save_maps : bool
        Also write each native map as float32 TIFF.
    """

    def __init__(
        self,
        folder: RunFolder,
        samples: Sequence[Sample],
        specs: Sequence[EvidenceSpec],
        *,
        seed: int,
        fitted: str,
        save_maps: bool = False,
    ) -> None:
        self._folder = folder
        self._samples = samples
        self._specs = specs
        self._seed = seed
        self._fitted = fitted
        self._save_maps = save_maps
        self._chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
        self._shards = [folder.shard(number) for number in range(len(self._chunks))]
        self._digests: dict[int, str] = {}
        self._complete: set[int] = set()

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self._chunks)

    def chunk(self, number: int) -> Sequence[Sample]:
        """Return the samples of a chunk."""
        return self._chunks[number]

    @property
    def takes_maps(self) -> bool:
        """Whether whole maps are wanted in the host's memory, so that counting them on a device is not enough."""
        return self._save_maps or any(spec.takes_map for spec in self._specs)

    def left(self) -> list[int]:
        """Return the chunks whose evidence is not there yet, in order."""
        return [number for number in range(len(self)) if not self.complete(number)]

    def complete(self, number: int) -> bool:
        """Tell whether the evidence of a chunk is there, and its maps if they were asked for."""
        if number not in self._complete and self._found(number):
            self._complete.add(number)
        return number in self._complete

    def collect(
        self,
        chunks: Iterable[int],
        anomaly_maps: Callable[[Iterable[Sample], dict[int, int]], Iterable[AnomalyMap]],
        spent: Callable[[], Spent],
        label: str,
    ) -> Iterator[int]:
        """Predict chunks and write their evidence; yield each that is written.

        A thread counts a map while the next image is predicted.

        Parameters
        ----------
        chunks : iterable of int
            Drawn from when their first image is needed, so that a chunk may be claimed as late as possible.
        anomaly_maps : callable
            From samples, and by position the seeds of the chunks that begin there, to their maps in order.
        spent : callable
            Asked when a chunk is written: what it took.
        label : str
            Of the progress bar.
        """
        seeds: dict[int, int] = {}
        numbers: dict[str, int] = {}  # of the chunks in work, by the ids of their samples

        def samples() -> Iterator[Sample]:
            position = 0
            for number in chunks:
                seeds[position] = mix(self._seed, 1, number + 1)
                numbers.update({sample.id: number for sample in self._chunks[number]})
                position += len(self._chunks[number])
                yield from self._chunks[number]

        working: dict[int, list[EvidenceCollector]] = {}

        def count(item: AnomalyMap) -> int | None:
            number = numbers.pop(item.sample.id)
            if item.sample is self._chunks[number][0]:
                working[number] = [EvidenceCollector(spec) for spec in self._specs]
            collectors = working.pop(number, None)
            if collectors is None:  # an image before it has failed: without that one there is no shard
                return None
            self._count(item, collectors)
            if item.sample is not self._chunks[number][-1]:
                working[number] = collectors
                return None
            self._write(number, [collector.result() for collector in collectors], spent())
            return number

        total = len(self._samples)
        done = sum(len(self._chunks[number]) for number in self._complete)
        with closing(ahead(count, anomaly_maps(samples(), seeds))) as counted:
            for number in track(counted, label, total=total, initial=done, unit="img"):
                if number is not None:
                    yield number

    def deliver(self, number: int, shard: Parcel) -> None:
        """Write the shard of a chunk that was made elsewhere, whole or not at all."""
        folder = self._shards[number].path
        if folder.is_dir():
            shutil.rmtree(folder)
        with atomic(folder) as path:
            unpack(shard, path)

    def refill(self, evidence: Sequence[Evidence], spent: Spent) -> None:
        """Write the shards of all chunks from evidence that is there, one for each spec; the first one took it all."""
        for number, samples in enumerate(self._chunks):
            ids = {sample.id for sample in samples}
            self._write(number, [part.of_images(ids) for part in evidence], spent)
            spent = dataclasses.replace(spent, earlier=0.0)

    def merged(self) -> list[Evidence]:
        """Return the evidence of all samples, one for each spec."""
        return [
            Evidence.merge([Evidence.load(shard.evidence(spec.name)) for shard in self._shards]) for spec in self._specs
        ]

    def spent(self) -> list[Spent]:
        """Return what each chunk took."""
        return [Spent.read(shard.spent) for shard in self._shards]

    def timing(self, evidence: Evidence) -> dict[str, Any]:
        """Return what prediction took, see :func:`hrbench.runs.cost.timing`."""
        return timing(evidence.images, {sample.id: math.prod(image_size(sample.image)) for sample in self._samples})

    def _found(self, number: int) -> bool:
        shard, samples = self._shards[number], self._chunks[number]
        if self._save_maps and not all(self._folder.map_of(sample.id).is_file() for sample in samples):
            return False
        if (inputs := text_of(shard.inputs)) is None or inputs != self._digest(number):
            return False
        try:
            Spent.read(shard.spent)
            for spec in self._specs:
                Evidence.load(shard.evidence(spec.name))
        except HrbenchError:  # damaged: it is done again
            return False
        return True

    def _digest(self, number: int) -> str:
        """Return what a shard depends on: what was learnt, the images, and their groups and conditions if any."""
        if number not in self._digests:
            samples = self._chunks[number]
            named = [[sample.group for sample in samples], [sample.condition for sample in samples]]
            parts = [self._fitted, content_digest(samples), *(json.dumps(names) for names in named if any(names))]
            self._digests[number] = " ".join(parts)
        return self._digests[number]

    def _count(self, item: AnomalyMap, collectors: Sequence[EvidenceCollector]) -> None:
        sample = item.sample
        mask, regions = sample_mask(sample, item.shape), sample_regions(sample, item.shape)
        for collector in collectors:
            collector.update_predicted(
                sample.id,
                item,
                mask,
                unmasked=sample.unmasked,
                defect_type=sample.defect_type,
                group=sample.group,
                condition=sample.condition,
                regions=regions,
            )
        if self._save_maps:
            with atomic(self._folder.map_of(sample.id)) as path:
                tifffile.imwrite(path, item.scores(), compression="zlib")

    def _write(self, number: int, evidence: Sequence[Evidence], spent: Spent) -> None:
        shard = self._shards[number]
        if self._found(number):  # this process was stopped for so long that another one has taken the chunk over
            return
        if shard.path.is_dir():  # of another fit, with other protocols, or on other images
            shutil.rmtree(shard.path)
        try:
            with atomic(shard.path) as path:
                path.mkdir()
                unnamed = Shard(path)
                unnamed.inputs.write_text(self._digest(number), encoding="utf-8")
                spent.write(unnamed.spent)
                for part in evidence:
                    part.save(unnamed.evidence(part.spec.name))
        except OSError:
            if not self._found(number):  # nor has another process written it at the same moment
                raise
        self._complete.add(number)
