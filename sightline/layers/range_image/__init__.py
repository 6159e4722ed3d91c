"""Layers of range images with circular columns, and a conditional random field (CRF) over them."""
