"""Series of trainings: studies over seeds and variants, and sweeps over a space of settings."""
