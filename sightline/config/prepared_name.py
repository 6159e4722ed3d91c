"""The data set of a config whose `data.root` names a prepared folder: the one that the folder was prepared as."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sightline.config.overrides import COMMAND_LINE
from sightline.config.yaml_tree import LocatedValue
from sightline.contract import registry
from sightline.contract.catalogue import are_of_one_area
from sightline.contract.types import SourceLocation

MANIFEST = "manifest.json"
_MAX_HEAD = 2**16
"""Bytes at the beginning of a manifest, whose second line names the set."""
_SET = re.compile(rb'^"set": "([\w-]+)",$', flags=re.MULTILINE)


def take_prepared_name(tree: LocatedValue) -> None:
    """Replace the data set of a preset by the one that the folder `data.root` was prepared as.

    The folder has to be stated elsewhere than the name: by the command line, or by a config over the preset. A name of
    the command line, or of the same file as the folder, stays, as does one that reads the folder, or is of another area
    than it. Settings go along if they are stated with the folder, or if the other set has them, too. The origin of the
    name is then the folder's manifest.
    """
    block = tree.value.get("data") if isinstance(tree.value, dict) else None
    entries = block.value if block is not None and isinstance(block.value, dict) else {}
    name, root = entries.get("name"), entries.get("root")
    if block is None or name is None or root is None or not isinstance(root.value, str):
        return
    folder = Path(os.path.expanduser(root.value))
    prepared = _read_set_name(folder / MANIFEST)
    if prepared is None or name.where.source in (COMMAND_LINE, root.where.source) or _can_read(name.value, prepared):
        return
    where = SourceLocation(str(folder / MANIFEST), path="data.name")
    arguments = registry.data.get_entry(prepared).arguments
    stated = {COMMAND_LINE, root.where.source}
    remaining = {key: value for key, value in entries.items() if key in arguments or value.where.source in stated}
    entries.clear()
    entries |= {"name": LocatedValue(prepared, where), **remaining}


def is_of_folder(where: SourceLocation) -> bool:
    """Return True for the origin of a name that `take_prepared_name` took."""
    return where.path == "data.name" and Path(where.source).name == MANIFEST


def _can_read(name: object, prepared: str) -> bool:
    """Return True if a set reads folders of another, or if nothing says that the other may take its place."""
    names = registry.data.names()
    if name not in names or prepared not in names or not are_of_one_area("data", str(name), prepared):
        return True
    readable = getattr(registry.data.get_entry(str(name)).builder, "readable_sets", ())
    return prepared == name or prepared in readable


def _read_set_name(path: Path) -> str | None:
    """Return the name in a manifest; None without one. Whoever opens the folder verifies it."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            match = _SET.search(file.read(_MAX_HEAD))
    except (OSError, ValueError):
        return None
    return None if match is None else match[1].decode()
