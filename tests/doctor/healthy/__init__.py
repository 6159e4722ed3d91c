"""Healthy programs, each drawn from one seed: sound by construction, over what ordinary projects have."""
