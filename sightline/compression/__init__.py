"""Weights of few bits: storage formats, codebooks, grids, quantised inputs, and the file of a packed model."""
