"""A model by its name in `sightline list models`, without a run or a config."""

from __future__ import annotations

from typing import Any

from torch import nn

from sightline.contract import registry
from sightline.contract.errors import ConfigError
from sightline.contract.schema import check_value, suggest
from sightline.contract.types import ComponentConfig, SourceLocation


def build_model(name: str, /, **arguments: Any) -> nn.Module:
    """Build a model by its name in `sightline list models`, with random weights from torch's global generator.

    Facts that a data set would give (`num_classes`, `in_channels`) are arguments like any other here. Raises
    ConfigError for a name or an argument that there is not, and for a value of another type.
    """
    facts = {key: value for key, value in arguments.items() if key in registry.FACTS}
    config_arguments = {key: value for key, value in arguments.items() if key not in facts}
    component = ComponentConfig(name, config_arguments, location=SourceLocation("build_model"))
    bound = registry.models.bind(component)
    if bound.faults:
        raise ConfigError(*map(str, bound.faults))
    accepted_facts = bound.accepted_facts
    faults = [
        f"build_model.{key}: '{name}' needs the argument '{key}'"
        for key, parameter in accepted_facts.items()
        if parameter.is_required and key not in facts
    ]
    for key, value in facts.items():
        if key not in accepted_facts:
            names = {**bound.entry.parameters, **accepted_facts}
            faults.append(f"build_model.{key}: '{name}' has no such argument{suggest(key, names)}")
        else:
            misfits = check_value(accepted_facts[key].annotation, value)[1]
            faults += [f"build_model.{'.'.join(filter(None, (key, part)))}: {text}" for part, text in misfits]
    if faults:
        raise ConfigError(*faults)
    model: nn.Module = bound.build(facts=facts)
    return model
