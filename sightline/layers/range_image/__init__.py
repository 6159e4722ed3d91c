"""Layers of range images: their columns as a full turn, and a conditional random field over them."""
