"""Collector of config faults, so that all of them are reported at once, each with its file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sightline.contract.errors import ConfigError
from sightline.contract.registry import ConfigFault
from sightline.contract.types import SourceLocation


class ConfigFaults:
    """Faults of a config, one per location: further faults of the same location are not reported."""

    def __init__(self) -> None:
        self._by_location: dict[SourceLocation, ConfigFault] = {}

    def __bool__(self) -> bool:
        return bool(self._by_location)

    def add(self, where: SourceLocation, text: str) -> None:
        """Note a fault at a location."""
        self._by_location.setdefault(where, ConfigFault(where, text))

    def raise_any(self) -> None:
        """Raise ConfigError with one line per fault, by file and line; do nothing without faults."""
        if not self._by_location:
            return
        files = list(dict.fromkeys(where.source for where in self._by_location))
        faults = sorted(self._by_location.values(), key=lambda f: (files.index(f.where.source), f.where.line or 0))
        raise ConfigError(*map(str, faults))


@contextmanager
def locate_errors(origins: Mapping[str, SourceLocation]) -> Iterator[None]:
    """Context that adds file and line to ConfigErrors that begin with the dotted path of a config value."""
    try:
        yield
    except ConfigError as error:
        if not any(fault.partition(": ")[0] in origins for fault in error.faults):
            raise
        raise ConfigError(*(_add_location(fault, origins) for fault in error.faults)) from error


def _add_location(fault: str, origins: Mapping[str, SourceLocation]) -> str:
    path, _, text = fault.partition(": ")
    return f"{origins[path]}: {text}" if path in origins else fault
