"""Attributes that differ between two modules that should be equal: an epsilon, a padding, a slope."""

from __future__ import annotations

from torch import nn

from sightline.compare.layerwise import LayerComparison

__all__ = ["differing_settings", "find_module"]

_SIMPLE = (bool, int, float, str, tuple, type(None))


def find_module(model: nn.Module, row: LayerComparison) -> nn.Module | None:
    """Find the module of a row in a model, by its path or by its printed name; None if there is none."""
    if row.unit is None:
        return None
    modules = dict(model.named_modules())
    path, printed_path = row.unit.call.path, row.unit.call.name.partition(" (call")[0]
    for name in (path, path.removeprefix("network."), printed_path):
        if name in modules:
            return modules[name]
    return None


def differing_settings(first: nn.Module, second: nn.Module) -> list[str]:
    """Describe the plain attributes that differ, in the modules and in the submodules that both have."""
    other_modules = dict(second.named_modules())
    lines = []
    for path, module in first.named_modules():
        if path in other_modules:
            settings, other_settings = _plain_attributes(module), _plain_attributes(other_modules[path])
            prefix = f"{path}." if path else ""
            lines += [
                f"{prefix}{name} is {settings[name]} and in the reference {other_settings[name]}"
                for name in settings
                if name in other_settings and settings[name] != other_settings[name]
            ]
    return lines


def _plain_attributes(module: nn.Module) -> dict[str, object]:
    attributes = vars(module).items()
    return {name: value for name, value in attributes if not name.startswith("_") and isinstance(value, _SIMPLE)}
