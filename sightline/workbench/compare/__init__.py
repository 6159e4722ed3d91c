"""Comparison of a network with a variant of itself, another implementation or a record, layer by layer."""
