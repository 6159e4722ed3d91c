"""How programs use their batches: forms that are stated, tried, or observed, and those of models with their losses."""
