"""Relations of plain objects: a module, a loss function and batches, as `sightline.check` asks them."""
