"""Oracles of the deep checks: finite differences, on inputs recorded in a real step."""
