"""Trained runs as files that other programs run: a network's graph, its check, the description beside it."""
