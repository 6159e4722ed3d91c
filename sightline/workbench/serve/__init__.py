"""Trained runs behind HTTP: requests become files of the server's own, batches of them become predictions."""
