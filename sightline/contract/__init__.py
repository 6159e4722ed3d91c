"""Contracts of all parts: types, facts, errors, signatures, registries and base classes; nothing here knows an area."""
