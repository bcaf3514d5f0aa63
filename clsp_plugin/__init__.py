"""Contrastive learning with synthetic positives (CLSP, ECCV 2024) on the solo-learn contract."""

__version__ = "0.1.0"
