"""Folder of a run: its files, checkpoints, weights, and the list of runs."""
