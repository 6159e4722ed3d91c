"""Parsing of a probe's arguments and config overrides on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sightline import registry
from sightline.config.component_arguments import parse_component
from sightline.errors import UserError
from sightline.probe.outcome import Probe

__all__ = ["build_probe", "split_words"]

_CONFIG_KEYS = ("model.*", "data.*", "transforms.evaluate*", "evaluate.batch_size", "loader.*")
"""Config keys that may be overridden; keys with a dot belong to the configs, all others to the probe."""


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into overrides of configs and arguments of the probe. Raises UserError for a key of neither."""
    overrides = [word for word in words if "." in word.partition("=")[0]]
    for word in overrides:
        key = word.partition("=")[0].strip()
        if not any(fnmatchcase(key, pattern) for pattern in _CONFIG_KEYS):
            raise UserError(f"probe: found {word!r}, allowed is key=value of the method, or {', '.join(_CONFIG_KEYS)}")
    return overrides, [word for word in words if word not in overrides]


def build_probe(method: str, words: Sequence[str]) -> Probe:
    """Build the probe of this name with these arguments. Raises ConfigError listing all errors at once."""
    built: Probe = registry.probes.build(parse_component(registry.probes, method, words), facts={})
    return built
