"""The small sufficient statistics that inference leaves behind, and every metric starts from."""

from hrbench.evidence.collector import EvidenceCollector
from hrbench.evidence.evidence import Calibration, Evidence, EvidenceSpec, specs_of

__all__ = ["Calibration", "Evidence", "EvidenceCollector", "EvidenceSpec", "specs_of"]
