"""The probe that words of a command line describe, and the overrides among them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from sightline import registry
from sightline.config.faults import Faults
from sightline.config.yaml_tree import read_value
from sightline.errors import ConfigError, UserError
from sightline.probe.outcome import Probe
from sightline.types import Component, Where

__all__ = ["build_probe", "parted"]

_OF_CONFIG = ("model.*", "data.*", "transforms.evaluate*", "evaluate.batch_size", "loader.*")
"""What may be laid over: keys with a dot belong to the configs, all others to the probe."""


def parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of configs, and arguments of the probe. Raises UserError for a key that would change neither."""
    overrides = [word for word in words if "." in word.partition("=")[0]]
    for word in overrides:
        key = word.partition("=")[0].strip()
        if not any(fnmatchcase(key, pattern) for pattern in _OF_CONFIG):
            raise UserError(f"probe: found {word!r}, allowed is key=value of the method, or {', '.join(_OF_CONFIG)}")
    return overrides, [word for word in words if word not in overrides]


def build_probe(method: str, words: Sequence[str]) -> Probe:
    """The probe of this name with these arguments. Raises ConfigError for all that is wrong with them at once."""
    faults = Faults()
    arguments: dict[str, Any] = {}
    origins = {"name": Where("command line", path="--method")}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or key in arguments:
            raise ConfigError(f"command line: found {word!r}, allowed is key=value, each key once, as folds=5")
        arguments[key] = read_value(text, "command line", key, faults).plain()
        origins[key] = Where("command line", path=key)
    faults.raise_any()
    component = Component(method.replace("-", "_"), where=origins["name"], origins=origins)
    taken = registry.probes.entry(component).arguments
    for key, value in arguments.items():
        if key in taken and typing.get_origin(taken[key].annotation) is tuple and not isinstance(value, list):
            arguments[key] = [value]  # C=0.1 is the list of one
    built: Probe = registry.probes.build(dataclasses.replace(component, arguments=arguments), facts={})
    return built
