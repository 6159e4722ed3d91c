"""Points: neighbours, samples, interpolation, convolutions over neighbours, rotations."""
