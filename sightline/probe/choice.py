"""The probe that words of a command line describe, and the overrides among them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sightline import registry
from sightline.config.component_arguments import parse_component
from sightline.errors import UserError
from sightline.probe.outcome import Probe

__all__ = ["build_probe", "split_words"]

_OF_CONFIG = ("model.*", "data.*", "transforms.evaluate*", "evaluate.batch_size", "loader.*")
"""What may be laid over: keys with a dot belong to the configs, all others to the probe."""


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of configs, and arguments of the probe. Raises UserError for a key that would change neither."""
    overrides = [word for word in words if "." in word.partition("=")[0]]
    for word in overrides:
        key = word.partition("=")[0].strip()
        if not any(fnmatchcase(key, pattern) for pattern in _OF_CONFIG):
            raise UserError(f"probe: found {word!r}, allowed is key=value of the method, or {', '.join(_OF_CONFIG)}")
    return overrides, [word for word in words if word not in overrides]


def build_probe(method: str, words: Sequence[str]) -> Probe:
    """The probe of this name with these arguments. Raises ConfigError for all that is wrong with them at once."""
    built: Probe = registry.probes.build(parse_component(registry.probes, method, words), facts={})
    return built
