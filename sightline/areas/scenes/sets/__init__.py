"""Data sets of scenes."""
