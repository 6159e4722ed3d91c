"""Boxes: overlaps, suppression, codes, priors, losses."""
