"""Component blocks from a command line option, with key=value arguments."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from sightline.config.faults import ConfigFaults
from sightline.config.yaml_tree import read_value
from sightline.errors import ConfigError
from sightline.registry import Registry
from sightline.types import ComponentConfig, SourceLocation

__all__ = ["parse_component"]


def parse_component(
    registry: Registry, name: str, words: Sequence[str], *, option: str = "--method"
) -> ComponentConfig:
    """Parse the component `name` of `option`, with `words` like folds=5 as arguments.

    Raises ConfigError for words that are not key=value, and for a name that is not registered.
    """
    faults = ConfigFaults()
    arguments: dict[str, Any] = {}
    origins = {"name": SourceLocation("command line", path=option)}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        if not equals or key in arguments:
            raise ConfigError(f"command line: found {word!r}, allowed is key=value, each key once, as folds=5")
        arguments[key] = read_value(text, "command line", key, faults).plain()
        origins[key] = SourceLocation("command line", path=key)
    faults.raise_any()
    component = ComponentConfig(name.replace("-", "_"), location=origins["name"], origins=origins)
    parameters = registry.entry(component).arguments
    for key, value in arguments.items():
        if key in parameters and typing.get_origin(parameters[key].annotation) is tuple and not isinstance(value, list):
            arguments[key] = [value]  # C=0.1 is the list of one
    return dataclasses.replace(component, arguments=arguments)
