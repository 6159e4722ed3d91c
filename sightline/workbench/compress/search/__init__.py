"""Searches for the policy with the lowest loss within a budget of bytes, behind one interface."""
