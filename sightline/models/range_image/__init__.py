"""Networks that label the pixels of range images."""
