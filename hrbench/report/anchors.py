"""Anchors of a page, made of names, so that an address can be read and stays the same when rows come and go."""

from __future__ import annotations

import re

from hrbench._util.files import name_digest

__all__ = ["SECTIONS", "Anchors"]

SECTIONS = {
    "found": "Smallest defects",
    "overall": "All thresholds",
    "pairs": "Compare",
    "ranks": "Ranks",
    "limits": "Detection limits",
    "conditions": "Conditions",
    "cost": "Cost",
    "protocols": "Protocols",
    "annotation": "Annotation",
    "categories": "Categories",
    "pictures": "Pictures",
    "methods": "Methods",
}
"""The sections of a dataset, in their order, with what the contents call them; ``pictures`` of a single category."""

_LONGEST = 80


class Anchors:
    """Gives each name an anchor that no other one of the page has.

    Examples
    --------
    >>> anchors = Anchors()
    >>> anchors.of("bsdata", "ball_screw"), anchors.of("weave & grain")
    ('bsdata-ball_screw', 'weave-grain')
    >>> anchors.of("weave/grain")
    'weave-grain~459ddd1bf3cb'
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counted = 0

    def short(self) -> str:
        """Return a short id, which no name has, for what nobody links to."""
        self._counted += 1
        return f"~{self._counted}"

    def of(self, *names: str, tell: str = "") -> str:
        """Return the anchor of `names`; one that is taken, or too long, ends with their digest.

        Parameters
        ----------
        *names : str
            From the whole to the part: dataset, category. Each call is for another thing.
        tell : str
            What tells it from others of the same names, for the digest.
        """
        stem = "-".join(filter(None, (re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names))) or "part"
        anchor = stem
        if len(stem) > _LONGEST or stem in self._taken:
            anchor = f"{stem[:_LONGEST]}~{name_digest('/'.join([*names, tell]))}"
        while anchor in self._taken:
            anchor += "~"
        self._taken.add(anchor)
        return anchor
