"""Networks for LiDAR semantic segmentation of range images."""
