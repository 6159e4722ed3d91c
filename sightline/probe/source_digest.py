"""The code that features depend on: a user's own parts, and sightline's."""

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

__all__ = ["ROOMS", "plugins_of", "source_sha256"]

ROOMS = (".", "config", "data", "engine", "geometry", "layers", "models", "probe", "transforms")
"""What stands between a file of clouds and a feature; the modules of the package itself are read by all the others."""


def plugins_of(*blocks: tuple[str, ComponentConfig]) -> dict[str, str]:
    """The plugins that these blocks, or blocks inside them, come from: file name and SHA-256 of the code that runs.

    What a plugin imports by itself is not looked at.
    """
    found: dict[str, str] = {}
    for kind, component in (each for block in blocks for each in iterate_blocks(*block)):
        builder = registry.REGISTRIES[kind].entry(component).builder
        for part in getattr(builder, "__mro__", (builder,)):
            found |= loaded_sha256(part)
    return found


@cache
def source_sha256() -> str:
    """SHA-256 of the modules that make features, and of the tables that they read: names of classes, for example.

    A version does not identify a checkout that is being edited.
    """
    digest = hashlib.sha256()
    package = resources.files("sightline")
    for room in ROOMS:
        for name, file in _modules_of(package.joinpath(room), room, is_deep=room != "."):
            digest.update(f"{name}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _modules_of(folder: Traversable, path: str, *, is_deep: bool) -> Iterator[tuple[str, Traversable]]:
    """The modules and tables of a folder by name, then those of the folders inside it where `is_deep`; with paths."""
    entries = sorted(folder.iterdir(), key=lambda each: (each.is_dir(), each.name))
    for each in entries:
        if each.is_dir() and is_deep:
            yield from _modules_of(each, f"{path}/{each.name}", is_deep=True)
        elif each.name.endswith((".py", ".json", ".yaml")):
            yield f"{path}/{each.name}", each
