"""Assigners: the targets of priors, each a box, background or ignored."""
