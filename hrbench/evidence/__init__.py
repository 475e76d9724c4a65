"""The small sufficient statistics that inference leaves behind, and every metric starts from."""

from hrbench.evidence.calibration import Calibration, NormalTally
from hrbench.evidence.collector import EvidenceCollector
from hrbench.evidence.evidence import Evidence
from hrbench.evidence.masks import MASKS, Masks, with_masks
from hrbench.evidence.spec import EvidenceSpec, specs_of
from hrbench.imaging import Region

__all__ = [
    "MASKS",
    "Calibration",
    "Evidence",
    "EvidenceCollector",
    "EvidenceSpec",
    "Masks",
    "NormalTally",
    "Region",
    "specs_of",
    "with_masks",
]
