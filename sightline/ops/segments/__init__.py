"""Segments of packed rows."""
