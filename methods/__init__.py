"""Anomaly detection and segmentation methods, one module each; installed as ``hrbench.methods``."""
