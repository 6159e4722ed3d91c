"""Layers of a config: a file over its base, and command line overrides over both."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sightline.config import image_size
from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import LocatedValue, read_value
from sightline.contract.errors import ConfigError, UserError
from sightline.contract.schema import format_value
from sightline.contract.types import SourceLocation

COMMAND_LINE = "command line"
_INDEX = re.compile(r"[0-9]{1,6}")


class _Leaf(NamedTuple):
    """One value of the command line and its path of keys."""

    keys: tuple[str, ...]
    value: LocatedValue

    @property
    def order(self) -> tuple[int, bool]:
        """Sort key: containers before their content, and a name before the arguments that it would drop."""
        return len(self.keys), self.keys[-1] != "name"


def merge(base: LocatedValue, override: LocatedValue) -> LocatedValue:
    """Merge two trees: mappings merge, lists and values replace; a block of another `name` replaces its base."""
    if not (isinstance(base.value, dict) and isinstance(override.value, dict)):
        return override
    base_name, override_name = base.value.get("name"), override.value.get("name")
    if (
        base_name is not None
        and override_name is not None
        and base_name.value != override_name.value
        and base.where.path
    ):
        return override
    merged = dict(base.value)
    for key, child in override.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return LocatedValue(merged, override.where)


def apply_overrides(tree: LocatedValue, overrides: Sequence[str], faults: ConfigFaults) -> LocatedValue:
    """Apply `key=value` overrides to the tree, in any order; a key given twice is a fault.

    `imgsz=640` or `640x480`, width x height, is the size of the images: it is written as every size that the transforms
    have under the other overrides.
    """
    sizes = [text for text in overrides if _get_key(text) == image_size.WORD]
    others = [text for text in overrides if _get_key(text) != image_size.WORD]
    leaves = sorted((leaf for text in others for leaf in _parse_override(text, faults)), key=lambda leaf: leaf.order)
    applied: dict[tuple[str, ...], LocatedValue] = {}
    tree = _apply_leaves(tree, leaves, applied, faults)
    if len(sizes) > 1:
        faults.add(SourceLocation(COMMAND_LINE, path=image_size.WORD), "is given twice on the command line; keep one")
    for text in sizes[:1]:
        tree = _apply_leaves(tree, _list_sizes(tree, text, faults), applied, faults)
    return tree


def _get_key(override: str) -> str:
    return override.partition("=")[0].strip()


def _list_sizes(tree: LocatedValue, override: str, faults: ConfigFaults) -> list[_Leaf]:
    """List the sizes of the tree's transforms as one size makes them; a fault if it has none, or cannot have this."""
    where = SourceLocation(COMMAND_LINE, path=image_size.WORD)
    try:
        size = image_size.parse_size(override.partition("=")[2])
        sizes = list(image_size.list_sizes(tree.plain(), size))
    except ConfigError as error:
        faults.add(where, str(error))
        return []
    return [
        _Leaf(
            tuple(path.split(".")),
            LocatedValue([LocatedValue(side, where) for side in value] if isinstance(value, list) else value, where),
        )
        for path, value in sizes
    ]


def _apply_leaves(
    tree: LocatedValue,
    leaves: Sequence[_Leaf],
    applied: dict[tuple[str, ...], LocatedValue],
    faults: ConfigFaults,
) -> LocatedValue:
    """Apply leaves to the tree; one that was `applied` before is a fault."""
    for leaf in leaves:
        outer = (applied.get(leaf.keys[:length]) for length in range(1, len(leaf.keys) + 1))
        if any(value is not None and not isinstance(value.value, list) for value in outer) or leaf.keys in applied:
            path = ".".join(leaf.keys)
            twice = "is" if leaf.value.where.path == path else f"gives {path}, which is"
            faults.add(leaf.value.where, f"{twice} given twice on the command line; keep one")
            continue
        applied[leaf.keys] = leaf.value
        tree = merge(tree, _nest(leaf, 0, tree, faults))
    return tree


def split_values(text: str, *, separator: str = ",") -> list[str]:
    """Split a text at commas outside of brackets, as in `relu,{name: leaky, slope: 0.1}`; strip spaces."""
    parts, depth = [""], 0
    for character in text:
        depth += character in "[{(" or -(character in "]})")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def parse_variants(varied: Sequence[str]) -> list[tuple[str, ...]]:
    """Parse `key=value,value` options to the cross product of overrides. Commas in brackets belong to a value.

    Raises UserError for an option without values.
    """
    overrides_by_option: list[list[str]] = []
    for text in varied:
        key, equals, values = text.partition("=")
        split = split_values(values)
        if not equals or not key or not all(split):
            raise UserError(f"--vary {text}: give key=value,value, as --vary model.channels_last=true,false")
        overrides_by_option.append([f"{key}={value}" for value in split])
    keys = [text.partition("=")[0] for text in varied]
    if len(set(keys)) < len(keys):
        raise UserError(f"--vary {varied[-1]}: the key is varied twice; name all its values at once")
    return [tuple(overrides) for overrides in itertools.product(*overrides_by_option)]


def _parse_override(override: str, faults: ConfigFaults) -> Iterator[_Leaf]:
    path, equals, text = override.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        faults.add(
            SourceLocation(COMMAND_LINE), f"found {format_value(override)}, allowed is key=value, as train.epochs=10"
        )
        return
    yield from _list_leaves(keys, read_value(text, COMMAND_LINE, path.strip(), faults))


def _list_leaves(keys: tuple[str, ...], value: LocatedValue) -> Iterator[_Leaf]:
    """Yield the leaves of a value: a mapping merges key by key, as it would in a file."""
    if isinstance(value.value, dict) and value.value:
        for key, child in value.value.items():
            yield from _list_leaves((*keys, key), child)
    else:
        yield _Leaf(keys, value)


def _nest(leaf: _Leaf, depth: int, under: LocatedValue | None, faults: ConfigFaults) -> LocatedValue:
    """Nest a leaf in a mapping for each of its keys; in an existing list, a number selects an element."""
    if depth == len(leaf.keys):
        return leaf.value
    key, where = leaf.keys[depth], SourceLocation(COMMAND_LINE, path=".".join(leaf.keys[:depth]))
    if under is not None and isinstance(under.value, list):
        if not _INDEX.fullmatch(key) or int(key) >= len(under.value):
            valid_indices = f"0 to {len(under.value) - 1}" if under.value else "none: the list is empty"
            faults.add(leaf.value.where, f"'{key}' is not an element of the list; there are {valid_indices}")
            return under
        items = list(under.value)
        items[int(key)] = merge(items[int(key)], _nest(leaf, depth + 1, items[int(key)], faults))
        return LocatedValue(items, under.where)
    below = under.value.get(key) if under is not None and isinstance(under.value, dict) else None
    return LocatedValue({key: _nest(leaf, depth + 1, below, faults)}, where)
