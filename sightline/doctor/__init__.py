"""Doctor: evidence about a model, its loss and its data, and rules that only read it."""
