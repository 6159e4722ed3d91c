"""Transforms of samples that areas share."""
