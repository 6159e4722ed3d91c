"""Metrics of 3D boxes: KITTI's AP, a plain AP for sets of any size, and what their figures hide."""
