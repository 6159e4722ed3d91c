"""Voxels and heat maps."""
