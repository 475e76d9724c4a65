"""Pictures of the same places by all methods: what other runs of a category have chosen, and one does not have yet."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from hrbench.errors import HrbenchError
from hrbench.runs.job import Job
from hrbench.runs.picture_choice import EXTREMES, Choice, Scale, choose_again
from hrbench.runs.picture_files import Picture, write_pictures
from hrbench.runs.scoring import record_files
from hrbench.runs.stages import Setting
from hrbench.runs.store import Run

__all__ = ["Lacking", "add_pictures", "find_lacking", "lacks"]

log = logging.getLogger("hrbench")

_MOST = 99  # the number in the names of the last picture's files


@dataclasses.dataclass(frozen=True)
class Lacking:
    """Pictures that a finished run does not have, and all that drawing them takes.

    Attributes
    ----------
    job : Job
    setting : Setting
        How the run was done.
    numbered : tuple of (int, Choice)
        By the number in the names of its files.
    scale : Scale
        That of the pictures that the run has.
    """

    job: Job
    setting: Setting
    numbered: tuple[tuple[int, Choice], ...]
    scale: Scale


def lacks(run: Run, others: Sequence[Run]) -> list[Picture]:
    """Return what other runs of the same images have chosen by their scores, and a run has no picture of."""
    there = {picture.key for picture in run.pictures.items}
    wanted: dict[object, Picture] = {}
    for other in others:
        try:
            items = other.pictures.items
        except HrbenchError:  # told where its own are shown
            continue
        for picture in items:
            if picture.key not in there and {*EXTREMES} & {*picture.kinds}:
                wanted.setdefault(picture.key, picture)
    return list(wanted.values())


def find_lacking(job: Job, run: Run, others: Sequence[Run], setting: Setting) -> Lacking | None:
    """Return what a run lacks of the pictures of others; None if nothing, or its own have another form.

    Raises
    ------
    HrbenchError
        If its evidence or pictures are damaged.
    """
    pictures, about = run.pictures, run.about
    protocol = next((each for each in setting.protocols if each.name == pictures.protocol), None)
    wanted = lacks(run, others)
    if protocol is None or not (wanted and pictures.items):
        return None
    chosen = choose_again(run.load_evidence(protocol), protocol, pictures.threshold, wanted)
    starts = (picture.photo.name[:2] for picture in pictures.items)
    first = 1 + max((int(start) for start in starts if start.isdecimal()), default=-1)
    numbered = tuple(enumerate(chosen, first))[: _MOST + 1 - first]
    done = dataclasses.replace(setting, batch_size=about.batch_size, compiled=about.compiled, save_maps=False)
    scale = Scale(pictures.low, pictures.unit, pictures.threshold, pictures.budget)
    return Lacking(job, done, numbered, scale) if numbered else None


def add_pictures(run: Run, items: Sequence[Picture]) -> None:
    """Add pictures, whose files are in a run's folder, to those that it has; for who holds its lease.

    If it is killed before the record is written, the run's pictures are damaged, and the same job makes them again.
    """
    folder, pictures = run.files.pictures, run.pictures
    index = write_pictures(folder, dataclasses.replace(pictures, items=(*pictures.items, *items)))
    record_files(run, [index, *(folder / path.name for item in items for path in item.files)])
