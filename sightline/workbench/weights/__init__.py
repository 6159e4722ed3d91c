"""Weights that change hands: published ones as run directories, runs of our own on a hub."""
