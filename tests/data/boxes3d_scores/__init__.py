"""Tests of 3D boxes: conversions, label files of other tools, sets, and what readers remark."""
