"""What detectors share, for boxes of 4 numbers in images or 7 in space: bases of assigners and suppressions."""
