"""Evidence about what stands around a step: what a program has saved, and what its sets and scores draw and add."""
