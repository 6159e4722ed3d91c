"""Assigners: which box of an image each prior is to predict, or that it is background, or counts nowhere."""
