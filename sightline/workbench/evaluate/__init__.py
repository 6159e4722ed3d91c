"""Documents of evaluations, saved predictions, and scores of prediction files."""
