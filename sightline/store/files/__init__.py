"""Readers and writers of file formats: clouds, scans, meshes, images, arrays, tables."""
