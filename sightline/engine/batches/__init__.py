"""Batches of a run: which samples each holds, and who reads them."""
