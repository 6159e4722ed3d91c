"""Description of a run's network and data, profiles of its steps, and the test of learning rates."""
