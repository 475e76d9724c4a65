"""The batch sizes that were found, so that jobs that are alike share one and it is measured once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hrbench._util.files import atomic
from hrbench._util.received import read_json
from hrbench.engine.device import device_name
from hrbench.errors import HrbenchError
from hrbench.registry import load_method, source_digest
from hrbench.runs.job import Job
from hrbench.runs.record import json_digest

__all__ = ["BatchSizes"]


class BatchSizes:
    """Batch sizes by method, options, view, precision and device.

    Parameters
    ----------
    folder : Path, optional
        Where they are kept, each in a file; without it only as long as this object lives.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, int] = {}

    def of(self, job: Job, device: torch.device, *, compiled: bool) -> int | None:
        """Return the batch size that was found for jobs like this one; None if none was, or its file is damaged."""
        digest = json_digest(_likeness(job, device, compiled))
        if self._folder is None:
            return self._known.get(digest)
        try:
            size = read_json(self._folder / f"{digest}.json", 1 << 20)["batch_size"]
        except (HrbenchError, KeyError, TypeError):
            return None
        return size if type(size) is int and size > 0 else None

    def keep(self, job: Job, device: torch.device, size: int, *, compiled: bool) -> None:
        """Keep what was found for jobs like this one."""
        likeness = _likeness(job, device, compiled)
        digest = json_digest(likeness)
        self._known[digest] = size
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic(self._folder / f"{digest}.json") as path:
                path.write_text(json.dumps({**likeness, "batch_size": size}, indent=1), encoding="utf-8")


def _likeness(job: Job, device: torch.device, compiled: bool) -> dict[str, Any]:
    return {
        "method": job.method_name,
        "source_sha256": source_digest(load_method(job.method)),
        "options": dict(job.recorded_options),
        "view": job.view.text,
        "precision": job.precision,
        "compiled": compiled,
        "device": device_name(device),
        "torch": torch.__version__,
    }
