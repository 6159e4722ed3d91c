"""Compression of a trained model: policies of bits per layer, their costs, and searches for them."""
