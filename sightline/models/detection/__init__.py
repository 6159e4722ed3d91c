"""Detectors: backbones, necks and heads, and the model that joins one of each."""
