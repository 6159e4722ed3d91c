"""Over-fit one sample or a few: can this recipe learn at all, and if not, why."""
