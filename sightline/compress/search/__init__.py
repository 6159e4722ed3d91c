"""Searches for the policy of least loss within a budget of bytes, behind one interface."""
