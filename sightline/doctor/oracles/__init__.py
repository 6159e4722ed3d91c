"""What the deep checks compare with: layers in plain NumPy, finite differences, inputs recorded from a real step."""
