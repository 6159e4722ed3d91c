"""Benchmarks of a checkout: cases against textbook forms and other packages, and scripts of their own."""
