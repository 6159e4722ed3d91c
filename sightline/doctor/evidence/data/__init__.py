"""Measurements of what a program reads: samples, reads of one again and again, mirrored ones, statistics."""
