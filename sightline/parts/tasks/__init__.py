"""Tasks that areas share, and `Supervised`, the base of most tasks."""
