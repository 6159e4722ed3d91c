"""What grids of sparse voxels make of clouds, and the rules of runs whose networks compute on them."""
