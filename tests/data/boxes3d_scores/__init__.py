"""Tests of scores of 3D boxes: files of results, what `score` makes of them, and its remarks."""
