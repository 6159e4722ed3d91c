"""The device of a run: transfer of batches to it, number formats and kernels, memory, and data that stay on it."""
