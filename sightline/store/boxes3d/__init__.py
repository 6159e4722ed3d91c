"""3D boxes below the areas: the table of a frame, conversions, and the label files of other tools."""
