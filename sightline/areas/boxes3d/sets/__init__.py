"""Data sets of LiDAR clouds with 3D boxes."""
