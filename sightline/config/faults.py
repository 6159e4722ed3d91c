"""The faults of a config, gathered while it is read, so that all of them are reported at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sightline.errors import ConfigError
from sightline.registry import ConfigFault
from sightline.types import SourceLocation

__all__ = ["ConfigFaults", "locate_errors"]


class ConfigFaults:
    """One fault per place: what follows from a fault at the same place is not reported again."""

    def __init__(self) -> None:
        self._by_place: dict[SourceLocation, ConfigFault] = {}

    def __bool__(self) -> bool:
        return bool(self._by_place)

    def add(self, where: SourceLocation, text: str) -> None:
        """Note what is wrong at a place."""
        self._by_place.setdefault(where, ConfigFault(where, text))

    def raise_any(self) -> None:
        """Raises ConfigError with one line per fault, by file and line; does nothing where there is none."""
        if not self._by_place:
            return
        files = list(dict.fromkeys(where.source for where in self._by_place))
        faults = sorted(self._by_place.values(), key=lambda f: (files.index(f.where.source), f.where.line or 0))
        raise ConfigError(*map(str, faults))


@contextmanager
def locate_errors(origins: Mapping[str, SourceLocation]) -> Iterator[None]:
    """Put file and line before the ConfigErrors, raised inside, that begin with the dotted path of a config's value."""
    try:
        yield
    except ConfigError as error:
        if not any(fault.partition(": ")[0] in origins for fault in error.faults):
            raise
        raise ConfigError(*(_with_place(fault, origins) for fault in error.faults)) from error


def _with_place(fault: str, origins: Mapping[str, SourceLocation]) -> str:
    path, _, text = fault.partition(": ")
    return f"{origins[path]}: {text}" if path in origins else fault
