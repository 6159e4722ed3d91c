"""Observers that write to TensorBoard, Weights & Biases and MLflow."""
