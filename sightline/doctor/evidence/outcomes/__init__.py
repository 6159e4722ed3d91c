"""Evidence about what a training came to: jumps of its numbers, figures of its evaluations, outputs in either mode."""
