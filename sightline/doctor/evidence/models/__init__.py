"""Evidence about what a model is told and draws: the lengths of its series, the noise of its samples."""
