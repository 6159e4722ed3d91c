"""Pictures, charts, and the template of every page that the package writes."""
