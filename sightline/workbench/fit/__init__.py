"""Overfitting test on one or a few samples: can this recipe learn, and if not, why."""
