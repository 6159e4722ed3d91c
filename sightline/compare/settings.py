"""What is set otherwise in two modules that should be the same: an epsilon, a padding, a slope."""

from __future__ import annotations

from torch import nn

from sightline.compare.layerwise import LayerComparison

__all__ = ["differing_settings", "find_module"]

_SIMPLE = (bool, int, float, str, tuple, type(None))


def find_module(model: nn.Module, row: LayerComparison) -> nn.Module | None:
    """The module of a row in a model, under its path there or under the one that is shown."""
    if row.unit is None:
        return None
    modules = dict(model.named_modules())
    path, shown = row.unit.call.path, row.unit.call.name.partition(" (call")[0]
    for name in (path, path.removeprefix("network."), shown):
        if name in modules:
            return modules[name]
    return None


def differing_settings(first: nn.Module, second: nn.Module) -> list[str]:
    """In words, the plain attributes that differ, of the modules and of what both have inside."""
    others = dict(second.named_modules())
    lines = []
    for path, module in first.named_modules():
        if path in others:
            held, other = _plain(module), _plain(others[path])
            prefix = f"{path}." if path else ""
            lines += [
                f"{prefix}{name} is {held[name]} and in the reference {other[name]}"
                for name in held
                if name in other and held[name] != other[name]
            ]
    return lines


def _plain(module: nn.Module) -> dict[str, object]:
    own = vars(module).items()
    return {name: value for name, value in own if not name.startswith("_") and isinstance(value, _SIMPLE)}
