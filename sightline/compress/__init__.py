"""Compression of a trained model: policies of bits per layer, their cost, and searches for them."""
