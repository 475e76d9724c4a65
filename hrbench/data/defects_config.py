"""``defects_config.json`` of MVTec LOCO AD and its kin: how much of a region must be found, by its mask's value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from pathlib import Path

from hrbench._util.received import read_json
from hrbench._util.types import Mismatch, conform
from hrbench.errors import HrbenchError

__all__ = ["DEFECTS_CONFIG", "DefectRule", "read_defects_config"]

DEFECTS_CONFIG = "defects_config.json"

_MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class DefectRule:
    """What a category says of the regions of one kind of defect; the fields are those of the file.

    Attributes
    ----------
    defect_name : str
    pixel_value : int
        Of the region's pixels in its mask.
    saturation_threshold : float
        How much of a region is enough: a share of its area, or pixels.
    relative_saturation : bool
        Whether it is a share.
    """

    defect_name: str
    pixel_value: int
    saturation_threshold: float
    relative_saturation: bool

    def saturation(self, area: int) -> int:
        """Return how many pixels of a region of `area` pixels are enough, 1 at least."""
        if self.relative_saturation:
            return max(1, int(self.saturation_threshold * area))
        return min(int(self.saturation_threshold), area)


def read_defects_config(path: Path, report: Callable[[str], object] | None = None) -> tuple[DefectRule, ...]:
    """Read the rules of a category.

    Parameters
    ----------
    path : Path
    report : callable, optional
        Is told each entry that is wrong; then there are no rules. By default the first is an error.

    Raises
    ------
    HrbenchError
        If the file is no list of such rules, has none, or two of one pixel value.
    """
    entries = read_json(path, _MOST_BYTES)
    if not isinstance(entries, list) or not entries:
        raise HrbenchError(f"{path}: {entries!r:.40}, expected a list of defects")
    rules: dict[int, DefectRule] = {}
    sound = True
    for number, entry in enumerate(entries):
        try:
            rule = _rule(entry, f"{path}: entry {number}", rules)
        except HrbenchError as error:
            if report is None:
                raise
            report(str(error))
            sound = False
            continue
        rules[rule.pixel_value] = rule
    return tuple(rules.values()) if sound else ()


def _rule(entry: object, where: str, known: Container[int]) -> DefectRule:
    """Return the rule of an entry; `known` are the pixel values that others have."""
    fields = [field.name for field in dataclasses.fields(DefectRule)]
    table = {key: entry[key] for key in fields if key in entry} if isinstance(entry, dict) else entry
    try:
        rule: DefectRule = conform(table, DefectRule)
    except Mismatch as mismatch:
        raise HrbenchError(f"{where}: {mismatch.path or 'it'} {mismatch.problem}") from None
    threshold = rule.saturation_threshold
    if rule.relative_saturation and not 0 < threshold <= 1:
        raise HrbenchError(f"{where}: saturation_threshold is {threshold}, expected a share in (0, 1]")
    if not rule.relative_saturation and not (threshold >= 1 and threshold.is_integer()):
        raise HrbenchError(f"{where}: saturation_threshold is {threshold}, expected pixels, 1 or more")
    if rule.pixel_value < 1:
        raise HrbenchError(f"{where}: pixel_value is {rule.pixel_value}, expected 1 or more")
    if rule.pixel_value in known:
        raise HrbenchError(f"{where}: pixel_value is {rule.pixel_value} once more, expected one entry for each")
    return rule
