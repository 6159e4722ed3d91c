"""Networks on clouds of one size."""
