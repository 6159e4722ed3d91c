"""Data sets of depth images."""
