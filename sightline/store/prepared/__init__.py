"""Prepared form of data sets: columns in files, their manifest, writer and readers."""
