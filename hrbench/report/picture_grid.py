"""Pictures of the same defects side by side: a line for each defect or good image, a column for each method."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hrbench._util.neighbours import larger_neighbours
from hrbench.errors import HrbenchError
from hrbench.metrics import DISJOINT
from hrbench.metrics.words import alarms_text, times_text
from hrbench.protocol import Protocol
from hrbench.report.answer import hit_sentence
from hrbench.report.configurations import printable
from hrbench.report.scores import BOX
from hrbench.report.summary import Leaderboard, Row
from hrbench.runs.picture_choice import ALARM, EXTREMES, FOUND, GOOD, SIDE_BY_SIDE, WITH_EXTREMES
from hrbench.runs.picture_files import Box, Picture, Pictures
from hrbench.runs.store import Run

__all__ = [
    "OPACITY",
    "GridColumn",
    "GridLine",
    "PictureGrid",
    "close_up",
    "edges",
    "panel_words",
    "picture_grid",
    "subject",
]

log = logging.getLogger("hrbench")

OPACITY = (0.0, 0.1, 0.3, 0.55, 0.75, 0.85, 0.9, 0.9, 0.9)
"""Of a map's colour over the photograph, from grey 0 to 255."""
_CLOSEST, _ROOM = 96, 4  # pixels of a close-up, at least, and sides of the defect that it shows
_MOST_EDGES = 4000
_HIGHEST_GOOD = "highest score of all good images"

Edge = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class GridColumn:
    """A row of the leaderboard, with the pictures of its run of the lowest seed that has any, and the protocol.

    Attributes
    ----------
    row : Row
    seed : int
    pictures : Pictures
    protocol : Protocol
    beside : dict of (str, Box) to int
        By image and box of a defect, the area of a far larger one beside it that is hit at the pictures' threshold.
    """

    row: Row
    seed: int
    pictures: Pictures
    protocol: Protocol
    beside: Mapping[tuple[str, Box | None], int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GridLine:
    """One defect, or one good image.

    Attributes
    ----------
    heading : str
        Why it is shown.
    first : Picture
        That of a method that has chosen it: photograph and mask are the same in all.
    panels : tuple of Picture or None
        One for each column; None where the run did not keep it.
    """

    heading: str
    first: Picture
    panels: tuple[Picture | None, ...]


@dataclasses.dataclass(frozen=True)
class PictureGrid:
    """The pictures of a category.

    Attributes
    ----------
    columns : tuple of GridColumn
    lines : tuple of GridLine
    notes : tuple of str
        What holds at the threshold, and what is not shown.
    """

    columns: tuple[GridColumn, ...]
    lines: tuple[GridLine, ...]
    notes: tuple[str, ...]


def picture_grid(board: Leaderboard, category: str) -> PictureGrid:
    """Arrange the pictures that the runs of a category keep."""
    columns: list[GridColumn] = []
    former: list[str] = []
    rows = [row for row in board.rows if category not in row.missing]
    for row in rows[:SIDE_BY_SIDE]:
        runs = sorted((run for run in row.runs if run.category == category), key=lambda run: run.seed)
        for counted in runs:
            try:
                found = counted.run.pictures
            except HrbenchError as error:
                log.warning("%s; the pictures of this run are left out", error)
                continue
            if found.items:
                columns.append(GridColumn(row, counted.seed, found, board.protocol, _beside(counted.run, found)))
                break
            if found.former and row.configuration.short not in former:
                former.append(row.configuration.short)
    notes = _notes(board, columns, len(rows))
    if former := [name for name in former if name not in {column.row.configuration.short for column in columns}]:
        who = f"{', '.join(former)}: " if columns else ""
        notes.append(
            f"{who}pictures were kept by an earlier version, in another form; `hrbench run` of this version into "
            "a new folder keeps photograph, map and mask."
        )
    lines = tuple(_lines(columns))
    if any(None in line.panels for line in lines):
        notes.append(
            "A run that was made without the others does not know what they have chosen; one `hrbench run` with all "
            "methods adds those pictures, and does nothing else again."
        )
    return PictureGrid(tuple(columns), lines, tuple(notes))


def _beside(run: Run, pictures: Pictures) -> dict[tuple[str, Box | None], int]:
    """Return the areas of far larger defects, hit at the pictures' threshold, by image and box of one beside them."""
    try:
        table = run.components
    except HrbenchError:  # told elsewhere
        return {}
    table = table[table["protocol"] == pictures.protocol]
    if pictures.threshold is None or not {*BOX, "critical"} <= set(table) or table["critical"].isna().any():
        return {}
    boxes, areas = table[BOX].to_numpy(), table["area"].to_numpy()
    images, hit = table["image"].tolist(), table["critical"].to_numpy() >= pictures.threshold
    found: dict[tuple[str, Box | None], int] = {}
    for number, larger in enumerate(larger_neighbours(images, boxes, areas).tolist()):
        if larger >= 0 and hit[larger]:
            top, left, bottom, right = boxes[number].tolist()
            found[images[number], (top, left, bottom, right)] = int(areas[larger])
    return found


def _notes(board: Leaderboard, columns: Sequence[GridColumn], rows: int) -> list[str]:
    notes = []
    if columns:
        budgets = dict.fromkeys(c.pictures.budget for c in columns if c.pictures.threshold is not None)
        if budgets:
            at = " and ".join(map(alarms_text, budgets))
            notes.append(
                f"The threshold is each method's own at {at}, wherever the slider above stands. "
                f"{hit_sentence(board.protocol)} So a defect can be missed though a part of it reaches the threshold."
            )
        else:
            notes.append("Without good test images there is no threshold at equal false alarms.")
        other = dict.fromkeys(c.pictures.protocol for c in columns if c.pictures.protocol != board.protocol.name)
        if other:
            notes.append(f"It is that of protocol {', '.join(other)}, by which the runs chose their pictures.")
    if columns and rows > SIDE_BY_SIDE:
        notes.append(f"Pictures are of the best {SIDE_BY_SIDE} of {rows} rows.")
    return notes


def _lines(columns: Sequence[GridColumn]) -> list[GridLine]:
    """Return the extremes of the best methods, a defect of each size, and the good images; last what some lack."""
    kept = [{picture.key: picture for picture in column.pictures.items} for column in columns]
    headings: dict[tuple[str, Box, Box | None], dict[str, list[str]]] = {}  # by kind whose they are
    for kind in EXTREMES:
        for column in columns[:WITH_EXTREMES]:
            for picture in column.pictures.items:
                if kind in picture.kinds:
                    silent = kind == ALARM and not column.pictures.found(picture)
                    what = f"{_HIGHEST_GOOD if silent else kind} {'by' if silent or kind == FOUND else 'of'} "
                    names = headings.setdefault(picture.key, {}).setdefault(what, [])
                    names.append(column.row.configuration.short)
    for kind in (*DISJOINT, GOOD):
        shared = [picture for column in columns for picture in column.pictures.items if kind in picture.kinds]
        if shared:  # the same for all, unless runs saw other images
            what = "a good image" if kind == GOOD else f"a {kind} defect"
            headings.setdefault(shared[0].key, {})[what] = []
    lines = []
    for key, kinds in headings.items():
        panels = tuple(pictures.get(key) for pictures in kept)
        first = next(panel for panel in panels if panel is not None and panel.kinds)  # who has chosen it
        heading = "; ".join(what + " and ".join(names) for what, names in kinds.items())
        lines.append(GridLine(heading[0].upper() + heading[1:], first, panels))
    return sorted(lines, key=lambda line: None in line.panels)


def panel_words(column: GridColumn, picture: Picture) -> tuple[str, str]:
    """Return what became of a defect or an image, and how far from the threshold that was."""
    found = column.pictures.found(picture)
    if found is None:
        return "", "no threshold"
    if picture.defect is not None:
        verdict = "found" if found else "missed"
    elif picture.label:
        verdict = "called" if found else "not called"
    else:
        verdict = "false alarm" if found else "silent"
    kept, pixels = column.pictures.share, column.protocol.alarm.pixels
    share = f"{100 * (column.protocol.pod.share if kept is None else kept):g} %"
    larger = column.beside.get((picture.image, picture.defect)) if found else None
    together = f", beside a defect of {larger:,} px that is found too and may light it up" if larger else ""
    if picture.reached is not None:
        part = math.floor(1000 * picture.reached + 1e-9) / 10  # down: what is missed stays below the share of a hit
        return verdict, f"{part:g} % of it reaches the threshold, a hit takes {share}{together}"
    far = times_text(column.pictures.relative(picture.score), reached=found)
    if picture.defect is not None:
        return verdict, f"{share} of it reaches {far}{together}"
    return verdict, f"{'highest score' if pixels == 1 else f'{pixels} pixels reach'} {far}"


def subject(picture: Picture) -> str:
    """Return what a picture is of: the area of the defect, and the image."""
    name = printable(picture.image)
    return f"{picture.area:,} px, {name}" if picture.defect is not None else name


def close_up(picture: Picture) -> Box:
    """Return the part of the window around the defect, or around the highest score, in native pixels."""
    top, left, bottom, right = picture.window
    row, column = picture.peak
    box = picture.defect or (row, column, row + 1, column + 1)
    if GOOD in picture.kinds and ALARM not in picture.kinds:
        return picture.window
    side = max(_CLOSEST, _ROOM * max(box[2] - box[0], box[3] - box[1]))
    height, width = min(side, bottom - top), min(side, right - left)
    y = min(max(top, (box[0] + box[2] - height) // 2), bottom - height)
    x = min(max(left, (box[1] + box[3] - width) // 2), right - width)
    return y, x, y + height, x + width


def edges(mask: npt.NDArray[np.bool_]) -> list[Edge]:
    """Return the outline of a mask along the edges of its pixels: lines from (x, y) to (x, y).

    One that is too ragged is drawn in steps of several pixels.
    """
    step = 1
    while len(found := [*_edges(mask, step), *((y, x, v, u) for x, y, u, v in _edges(mask.T, step))]) > _MOST_EDGES:
        step *= 2
        height, width = (-(-side // 2) * 2 for side in mask.shape)
        whole = np.zeros((height, width), bool)
        whole[: mask.shape[0], : mask.shape[1]] = mask
        mask = np.logical_or.reduce(whole.reshape(height // 2, 2, width // 2, 2), axis=(1, 3))
    return found


def _edges(mask: npt.NDArray[np.bool_], step: int) -> list[Edge]:
    """Return the horizontal ones."""
    padded = np.pad(mask, ((1, 1), (0, 0))).astype(np.int8)
    differs = np.pad(np.diff(padded, axis=0) != 0, ((0, 0), (1, 1))).astype(np.int8)
    turns = np.diff(differs, axis=1)
    rows, starts = np.nonzero(turns == 1)
    _, stops = np.nonzero(turns == -1)
    return [
        (x * step, y * step, end * step, y * step)
        for y, x, end in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
    ]
