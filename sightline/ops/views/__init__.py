"""Cameras, projections and range images."""
