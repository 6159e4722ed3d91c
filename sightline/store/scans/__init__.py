"""LiDAR scans of benchmarks: their tables, and their files of labels."""
