"""Evidence that only a live loop shows, as the monitors of `watch` give it to rules."""
