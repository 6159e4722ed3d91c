"""Plain values of a config: mappings, lists, leaves by their dotted keys, and the components that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sightline.contract.types import ComponentConfig


def to_plain(value: Any) -> Any:
    """Convert config sections and component blocks to mappings, tuples to lists."""
    if isinstance(value, ComponentConfig):
        weight = {"weight": to_plain(value.weight)} if value.weight != 1.0 else {}
        return {"name": value.name, **weight, **{key: to_plain(item) for key, item in value.arguments.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("key", f.name)]
        return {f.metadata.get("key", f.name): to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten a plain config to its leaves by their dotted keys; a list of plain values is a leaf, as written."""
    is_block = isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree)
    if is_block or (isinstance(tree, dict) and tree):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in flatten(value, f"{path}.{key}".lstrip(".")).items()}
    return {path: tree}


def list_component_names(config: Any) -> set[str]:
    """List every component that a config names, also inside others."""
    return set(_iterate_names(to_plain(config)))


def _iterate_names(tree: Any) -> Iterator[str]:
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    if isinstance(tree, Mapping) and isinstance(tree.get("name"), str):
        yield tree["name"]
    for item in items:
        yield from _iterate_names(item)
