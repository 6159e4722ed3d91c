"""Targets of a run: what reaches its losses, what a trained network knows of them, and their rules."""
