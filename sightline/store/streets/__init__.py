"""Streets of upright boxes and cylinders, and what a turning LiDAR above their road returns."""
