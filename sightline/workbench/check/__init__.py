"""Checks of a run before it is trained, as `sightline check` makes them."""
