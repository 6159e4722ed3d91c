"""Predictions of the user's own files by a trained run."""
