"""Rules of what stands around a step: of files that a loop goes on from, of sets that draw, of figures of batches."""
