"""Batches of samples: reading, transforms, collation, and the drawing of splits."""
