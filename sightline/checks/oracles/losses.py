def examine_losses(*a): return []
