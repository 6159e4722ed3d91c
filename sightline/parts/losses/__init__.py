"""Losses that areas share."""
