"""Layers of a config: a file over its base, the command line over both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import LocatedValue, read_value
from sightline.schema import format_value
from sightline.types import SourceLocation

__all__ = ["COMMAND_LINE", "apply_overrides", "merge", "split_values"]

COMMAND_LINE = "command line"
_INDEX = re.compile(r"[0-9]{1,6}")


class _Leaf(NamedTuple):
    """One value of the command line and the keys that lead to it."""

    keys: tuple[str, ...]
    value: LocatedValue

    @property
    def order(self) -> tuple[int, bool]:
        """Containers before what they contain, and a name before the arguments that it would drop."""
        return len(self.keys), self.keys[-1] != "name"


def merge(base: LocatedValue, override: LocatedValue) -> LocatedValue:
    """Mappings merge, lists and values replace; a block whose `name` changes drops the arguments it inherited."""
    if not (isinstance(base.value, dict) and isinstance(override.value, dict)):
        return override
    before, after = base.value.get("name"), override.value.get("name")
    if before is not None and after is not None and before.value != after.value and base.where.path:
        return override
    merged = dict(base.value)
    for key, child in override.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return LocatedValue(merged, override.where)


def apply_overrides(tree: LocatedValue, overrides: Sequence[str], faults: ConfigFaults) -> LocatedValue:
    """The tree with `key=value` overrides laid over it, in any order; a key given twice is a fault."""
    leaves = sorted((leaf for text in overrides for leaf in _read(text, faults)), key=lambda leaf: leaf.order)
    given: dict[tuple[str, ...], LocatedValue] = {}
    for leaf in leaves:
        outer = (given.get(leaf.keys[:length]) for length in range(1, len(leaf.keys) + 1))
        if any(value is not None and not isinstance(value.value, list) for value in outer) or leaf.keys in given:
            faults.add(leaf.value.where, "is given twice on the command line; keep one")
            continue
        given[leaf.keys] = leaf.value
        tree = merge(tree, _nest(leaf, 0, tree, faults))
    return tree


def split_values(text: str, *, separator: str = ",") -> list[str]:
    """Values between commas outside of brackets, as in `relu,{name: leaky, slope: 0.1}`; spaces around are dropped."""
    parts, depth = [""], 0
    for character in text:
        depth += character in "[{(" or -(character in "]})")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _read(override: str, faults: ConfigFaults) -> Iterator[_Leaf]:
    path, equals, text = override.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        faults.add(
            SourceLocation(COMMAND_LINE), f"found {format_value(override)}, allowed is key=value, as train.epochs=10"
        )
        return
    yield from _leaves(keys, read_value(text, COMMAND_LINE, path.strip(), faults))


def _leaves(keys: tuple[str, ...], value: LocatedValue) -> Iterator[_Leaf]:
    """A mapping given whole merges key by key, as it would in a file."""
    if isinstance(value.value, dict) and value.value:
        for key, child in value.value.items():
            yield from _leaves((*keys, key), child)
    else:
        yield _Leaf(keys, value)


def _nest(leaf: _Leaf, depth: int, under: LocatedValue | None, faults: ConfigFaults) -> LocatedValue:
    """The leaf inside as many mappings as it has keys; in a list that is there already, a number picks an element."""
    if depth == len(leaf.keys):
        return leaf.value
    key, where = leaf.keys[depth], SourceLocation(COMMAND_LINE, path=".".join(leaf.keys[:depth]))
    if under is not None and isinstance(under.value, list):
        if not _INDEX.fullmatch(key) or int(key) >= len(under.value):
            known = f"0 to {len(under.value) - 1}" if under.value else "none: the list is empty"
            faults.add(leaf.value.where, f"'{key}' is not an element of the list; there are {known}")
            return under
        items = list(under.value)
        items[int(key)] = merge(items[int(key)], _nest(leaf, depth + 1, items[int(key)], faults))
        return LocatedValue(items, under.where)
    below = under.value.get(key) if under is not None and isinstance(under.value, dict) else None
    return LocatedValue({key: _nest(leaf, depth + 1, below, faults)}, where)
