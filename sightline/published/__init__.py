"""Published weights: rows of layouts, their interpreter, and the files that they are in, on a disk or a hub."""
