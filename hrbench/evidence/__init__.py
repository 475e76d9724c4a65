"""The small sufficient statistics that inference leaves behind, and every metric starts from."""

from hrbench.evidence.collector import EvidenceCollector
from hrbench.evidence.evidence import Calibration, Collection, Evidence, collections_of

__all__ = ["Calibration", "Collection", "Evidence", "EvidenceCollector", "collections_of"]
