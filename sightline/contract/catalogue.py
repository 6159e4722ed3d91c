"""Catalogue of the package's parts: the module that registers a name, read without importing the module.

A room that has parts states them in its `__init__`, as `PARTS`: kind -> module of the room -> the names that it
registers. So the name of a part imports one module, and a new folder in `areas/` needs no other entry.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

ROOMS = ("contract", "parts", "store", "engine", "workbench")
"""Rooms with parts, in addition to the areas."""

_MIN_FROZEN_OBJECTS = 20_000
"""Number of new objects that shows a large import: torch and numba make hundreds of thousands."""

Parts = Mapping[str, Mapping[str, str]]


def list_areas() -> list[str]:
    """List the folders of `areas/` by name."""
    areas = importlib.import_module("sightline.areas")
    return sorted(module.name for module in pkgutil.iter_modules(areas.__path__) if module.ispkg)


@cache
def find_modules(kind: str) -> Mapping[str, str]:
    """Return the module of each part of a kind by the part's name; of a name that rooms share, that of the last."""
    return {name: module for module, names in list_modules(kind).items() for name in names.split()}


def list_modules(kind: str) -> Mapping[str, str]:
    """List the modules with parts of a kind and their names: rules of several rooms may have one code."""
    modules: dict[str, str] = {}
    for room in (*(f"areas.{area}" for area in list_areas()), *ROOMS):
        parts: Parts = getattr(importlib.import_module(f"sightline.{room}"), "PARTS", {})
        modules |= {f"sightline.{room}.{module}": names for module, names in parts.get(kind, {}).items()}
    return modules


def are_of_one_area(kind: str, name: str, other: str) -> bool:
    """Return True if two parts of a kind are of one area; of those of plugins nothing is known."""
    modules = find_modules(kind)
    return len({modules[part].split(".")[2] for part in (name, other) if part in modules}) < 2


def load_members(kind: str) -> list[Any]:
    """Import and return the classes or functions of a kind that no registry has, those of areas first.

    A room names them in `PARTS` as it names registered parts: its verbs and tools find them so, and import no area.
    """
    return [getattr(importlib.import_module(module), name) for name, module in find_modules(kind).items()]


def load_member(kind: str, name: str) -> Any:
    """Import and return one class or function of a kind that no registry has."""
    return getattr(importlib.import_module(find_modules(kind)[name]), name)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Context without garbage collection, for imports; `sightline train` shows its first step a quarter sooner.

    If a pause brought many objects, all that live are set aside (`gc.freeze`): later collections skip them, and
    each is still freed once nothing refers to it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] > _MIN_FROZEN_OBJECTS:
            gc.freeze()
        if was_on:
            gc.enable()
