"""How evidence is collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hrbench.protocol import Protocol

__all__ = ["EvidenceSpec", "specs_of"]


@dataclass(frozen=True)
class EvidenceSpec:
    """How evidence is collected; protocols that agree on this share their evidence.

    Attributes
    ----------
    rule : str
        From map to image score, see :class:`hrbench.protocol.ImageScoreRule`.
    connectivity : {4, 8}
        Of defect components.
    side : int or None
        Shrink maps and masks to this square before anything is measured; the image score stays that of the map.
    exact : bool
        Keep every distinct normal score instead of 22-bit bins: no error bound, and memory grows with every pixel.
    """

    rule: str = "max"
    connectivity: int = 8
    side: int | None = None
    exact: bool = False

    @staticmethod
    def of(protocol: Protocol, method_rule: str = "max", *, exact: bool = False) -> EvidenceSpec:
        """Return what a protocol asks for, of a method with the given image-score rule."""
        rule = method_rule if protocol.image_score == "method" else protocol.image_score
        return EvidenceSpec(rule, protocol.connectivity, protocol.side, exact)

    @property
    def name(self) -> str:
        """Name for a folder, such as ``native-max-8``."""
        exact = "-exact" if self.exact else ""
        return f"{self.side or 'native'}-{self.rule.replace(':', '')}-{self.connectivity}{exact}"

    @property
    def takes_map(self) -> bool:
        """Whether all pixels are wanted, so that a map cannot be counted on a device."""
        return self.exact or self.side is not None

    def serves(self, protocol: Protocol) -> bool:
        """Tell whether evidence collected so can be scored under `protocol`."""
        same_rule = protocol.image_score in ("method", self.rule)
        return same_rule and (self.connectivity, self.side) == (protocol.connectivity, protocol.side)


def specs_of(protocols: Sequence[Protocol], method_rule: str, *, exact: bool = False) -> list[EvidenceSpec]:
    """Return the different ways in which evidence must be collected for `protocols`, that of the first one first."""
    return list(dict.fromkeys(EvidenceSpec.of(protocol, method_rule, exact=exact) for protocol in protocols))
