"""Layers of detectors."""
