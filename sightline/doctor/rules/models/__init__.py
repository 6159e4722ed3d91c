"""Rules of what a model is told and draws: of the lengths of its series, of the noise of its samples."""
