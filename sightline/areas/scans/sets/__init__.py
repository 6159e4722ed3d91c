"""Data sets of scans."""
