"""Metrics: pure functions of evidence and protocol. Neither torch nor timm is imported here."""

from hrbench.metrics.aupimo import aupimo_images, aupimo_problem
from hrbench.metrics.curves import (
    Certified,
    binary_auroc,
    binary_average_precision,
    component_areas,
    pro_curve,
    roc_curve,
)
from hrbench.metrics.robustness import size_robustness
from hrbench.metrics.segmentation import automatic_threshold, calibrated_threshold
from hrbench.metrics.sizes import (
    CUMULATIVE,
    DISJOINT,
    diameter_names,
    equivalent_diameter,
    quartile_edges,
    size_subsets,
)
from hrbench.metrics.table import METRIC_COLUMNS, component_table, compute

__all__ = [
    "CUMULATIVE",
    "DISJOINT",
    "METRIC_COLUMNS",
    "Certified",
    "aupimo_images",
    "aupimo_problem",
    "automatic_threshold",
    "binary_auroc",
    "binary_average_precision",
    "calibrated_threshold",
    "component_areas",
    "component_table",
    "compute",
    "diameter_names",
    "equivalent_diameter",
    "pro_curve",
    "quartile_edges",
    "roc_curve",
    "size_robustness",
    "size_subsets",
]
