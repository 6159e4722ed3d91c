"""Digests of the code that features depend on: plugins, and modules of sightline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from sightline import registry
from sightline.plugins import loaded_sha256
from sightline.runs.blocks import iterate_blocks
from sightline.types import ComponentConfig

__all__ = ["ROOMS", "plugin_digests", "source_sha256"]

ROOMS = (".", "config", "data", "engine", "geometry", "layers", "models", "probe", "transforms")
"""Folders of the code from a cloud file to its feature; the package's top-level modules are used by all."""


def plugin_digests(*blocks: tuple[str, ComponentConfig]) -> dict[str, str]:
    """Return the plugins of these blocks and of blocks inside them: file name and SHA-256 of the loaded code.

    Further imports of a plugin are not included.
    """
    digests: dict[str, str] = {}
    for kind, component in (inner for block in blocks for inner in iterate_blocks(*block)):
        builder = registry.REGISTRIES[kind].entry(component).builder
        for part in getattr(builder, "__mro__", (builder,)):
            digests |= loaded_sha256(part)
    return digests


@cache
def source_sha256() -> str:
    """Compute the SHA-256 of the modules that make features and of the tables that they read (e.g. class names).

    The package version does not identify a checkout that is being edited.
    """
    digest = hashlib.sha256()
    package = resources.files("sightline")
    for room in ROOMS:
        for name, file in _iterate_modules(package.joinpath(room), room, is_deep=room != "."):
            digest.update(f"{name}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _iterate_modules(folder: Traversable, path: str, *, is_deep: bool) -> Iterator[tuple[str, Traversable]]:
    """Iterate over modules and tables of a folder by name, with paths; with `is_deep` also over its sub-folders."""
    entries = sorted(folder.iterdir(), key=lambda entry: (entry.is_dir(), entry.name))
    for entry in entries:
        if entry.is_dir() and is_deep:
            yield from _iterate_modules(entry, f"{path}/{entry.name}", is_deep=True)
        elif entry.name.endswith((".py", ".json", ".yaml")):
            yield f"{path}/{entry.name}", entry
