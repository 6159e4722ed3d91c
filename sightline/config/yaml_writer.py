"""YAML writer of a resolved config, which reads back equal, with the origin of every value as a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from sightline.config.plain_values import to_plain
from sightline.config.run_config import RunConfig

MAX_COLUMN = 56
_PLAIN_KEY = re.compile(r"(?!(true|false|null)\b)[A-Za-z_][A-Za-z0-9_-]*")


class _Line(NamedTuple):
    text: str
    comment: str


def render_config(config: RunConfig, *, origins: bool) -> str:
    """Render a config as YAML; with `origins`, each value is followed by its origin."""
    lines = list(_render_lines(to_plain(config), "", 0, config if origins else None))
    column = min(MAX_COLUMN, max((len(line.text) for line in lines if line.comment), default=0))
    texts = (f"{line.text:<{column}}  # {line.comment}" if line.comment else line.text for line in lines)
    return "\n".join(texts) + "\n"


def format_inline(value: Any) -> str:
    """Format a value on one line, quoted if our reader would otherwise not read it as text."""
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=10**6, allow_unicode=True).strip()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_inline(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_key(key)}: {format_inline(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _render_lines(tree: Any, path: str, indent: int, config: RunConfig | None) -> Iterator[_Line]:
    for key, value in tree.items():
        path_of_key = f"{path}.{key}".lstrip(".")
        pad = "  " * indent
        is_open = value and (config is None or path_of_key not in config.origins)
        if is_open and isinstance(value, dict):
            yield _Line(f"{pad}{_format_key(key)}:", "")
            yield from _render_lines(value, path_of_key, indent + 1, config)
        elif is_open and isinstance(value, list) and all(isinstance(item, dict) and item for item in value):
            yield _Line(f"{pad}{_format_key(key)}:", "")
            for index, item in enumerate(value):
                first, *more = _render_lines(item, f"{path_of_key}.{index}", indent + 2, config)
                yield first._replace(text=f"{pad}  - {first.text.lstrip()}")
                yield from more
        else:
            yield _Line(f"{pad}{_format_key(key)}: {format_inline(value)}", _format_origin(path_of_key, config))


def _format_key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else format_inline(key)


def _format_origin(path: str, config: RunConfig | None) -> str:
    if config is None or path not in config.origins:
        return ""
    where = config.origins[path]
    return where.source if where.line is None else f"{where.source}:{where.line}"
