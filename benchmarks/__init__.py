"""Benchmarks: cases against plain forms, textbook forms and other packages, and scripts of their own."""
