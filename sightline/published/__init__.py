"""Published weights: rows of layouts, their interpreter, and files of weights as run directories."""
