"""Oracles of the deep checks: layers in NumPy, finite differences, and inputs recorded in a real step."""
