"""A resolved config as YAML that reads back to an equal RunConfig, with the origin of every value as a comment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from sightline.config.run_config import RunConfig
from sightline.types import Component

__all__ = ["render", "to_plain"]


def render(config: RunConfig, *, origins: bool) -> str:
    """YAML text of the whole run; with `origins`, each line ends with where its value came from."""
    return "\n".join(_lines(to_plain(config), "", 0, config if origins else None)) + "\n"


def to_plain(value: Any) -> Any:
    """Config sections and component blocks as mappings, tuples as lists."""
    if isinstance(value, Component):
        weight = {"weight": value.weight} if value.weight != 1.0 else {}
        return {"name": value.name, **weight, **{key: to_plain(item) for key, item in value.arguments.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("key", f.name)]
        return {f.metadata.get("key", f.name): to_plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def _lines(tree: Any, path: str, indent: int, config: RunConfig | None) -> Iterator[str]:
    for key, value in tree.items():
        place = f"{path}.{key}".lstrip(".")
        pad = "  " * indent
        if isinstance(value, dict) and value:
            yield f"{pad}{key}:"
            yield from _lines(value, place, indent + 1, config)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield f"{pad}{key}:"
            for index, item in enumerate(value):
                first, *rest = _lines(item, f"{place}.{index}", indent + 2, config)
                yield f"{pad}  - {first.lstrip()}"
                yield from rest
        else:
            yield f"{pad}{key}: {_flow(value)}{_comment(place, config)}"


def _flow(value: Any) -> str:
    """One value on one line, quoted wherever our reader would otherwise read something else than text."""
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True).strip()
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _comment(path: str, config: RunConfig | None) -> str:
    if config is None or path not in config.origins:
        return ""
    where = config.origins[path]
    return f"  # {where.origin}" if where.line is None else f"  # {where.origin}:{where.line}"
