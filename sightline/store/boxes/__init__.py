"""Boxes in images: one table in memory, and every format of labels and of results that is read into it or written."""
