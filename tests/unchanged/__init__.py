"""Programs whose bits neither `check` nor `watch` changes."""
