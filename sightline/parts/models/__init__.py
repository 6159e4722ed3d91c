"""Networks that areas share."""
