"""Pretraining of the bundled backbones on images made by formulas alone (see tools/pretrain_backbone.py)."""
