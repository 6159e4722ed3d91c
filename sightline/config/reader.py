"""YAML file, its one base and the command line's overrides -> a frozen RunConfig; all faults in one go."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline import registry, schema
from sightline.arguments import Factor
from sightline.config.run_config import RunConfig
from sightline.config.yaml_tree import Located, read_file, read_value
from sightline.errors import ConfigError
from sightline.types import Component, Where

__all__ = ["read_config"]

MAX_BASES = 8
COMMAND_LINE = "command line"
DEFAULT = "default"
_KIND_OF_PATH = {
    "data": "data",
    "model": "models",
    "task": "tasks",
    "losses": "losses",
    "metrics": "metrics",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "transforms": "transforms",
}


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a config file describes, with `key=value` overrides laid over it.

    No data is read and no code of the config is run. Raises ConfigError with every fault found: file and line, dotted
    path, what was found, what is allowed.
    """
    tree = _with_bases(path)
    for override in overrides:
        tree = _merge(tree, _override_tree(override, tree))
    assert isinstance(tree.value, dict)
    tree.value.setdefault("name", Located(path.stem, Where(DEFAULT, path="name")))
    faults: list[str] = []
    origins: dict[str, Where] = {}
    values = _section(RunConfig, tree, "", faults, origins)
    if faults:
        raise ConfigError(*faults)
    config = RunConfig(**values, origins=origins)
    _check_whole(config)
    return config


def _with_bases(path: Path) -> Located:
    """The file laid over its base, that over its own, and so on."""
    chain: list[Path] = []
    trees: list[Located] = []
    following: Path | None = path
    while following is not None:
        if following.resolve() in chain:
            raise ConfigError(f"{trees[-1].where.origin}: base: '{following}' leads back to itself")
        if len(chain) == MAX_BASES:
            raise ConfigError(f"{path}: base: more than {MAX_BASES} configs stand on one another")
        chain.append(following.resolve())
        tree = read_file(following)
        assert isinstance(tree.value, dict)
        base = tree.value.pop("base", None)
        trees.append(tree)
        if base is None:
            break
        if not isinstance(base.value, str):
            raise ConfigError(f"{base.where}: found {schema.show_value(base.plain())}, allowed is the path of one config")
        following = following.parent / base.value
        if not following.is_file():
            raise ConfigError(f"{base.where}: no such file: {following}")
    merged = trees.pop()
    while trees:
        merged = _merge(merged, trees.pop())
    return merged


def _merge(under: Located, over: Located) -> Located:
    """Mappings merge, lists and values replace; a block whose `name` changes drops the arguments it inherited."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    before, after = under.value.get("name"), over.value.get("name")
    if before is not None and after is not None and before.value != after.value and under.where.path:
        return over
    merged = dict(under.value)
    for key, child in over.value.items():
        merged[key] = _merge(merged[key], child) if key in merged else child
    return Located(merged, over.where)


def _override_tree(override: str, tree: Located) -> Located:
    """`train.epochs=10` as a tree; a number in the path picks an element of a list that is there already."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{COMMAND_LINE}: '{override}' is not of the form key=value")
    parts = path.strip().split(".")
    leaf = Located(read_value(text, COMMAND_LINE).value, Where(COMMAND_LINE, path=path))
    return _nest(parts, 0, leaf, tree)


def _nest(parts: list[str], depth: int, leaf: Located, under: Located | None) -> Located:
    if depth == len(parts):
        return leaf
    part, where = parts[depth], Where(COMMAND_LINE, path=".".join(parts[:depth]))
    if under is not None and isinstance(under.value, list):
        if not part.isdigit() or int(part) >= len(under.value):
            place = ".".join(parts)
            raise ConfigError(f"{COMMAND_LINE}: {place}: '{part}' is not one of the {len(under.value)} elements, 0 first")
        items = list(under.value)
        items[int(part)] = _merge(items[int(part)], _nest(parts, depth + 1, leaf, items[int(part)]))
        return Located(items, under.where)
    below = under.value.get(part) if under is not None and isinstance(under.value, dict) else None
    return Located({part: _nest(parts, depth + 1, leaf, below)}, where)


def _section(
    cls: type, tree: Located, path: str, faults: list[str], origins: dict[str, Where]
) -> dict[str, Any]:
    """The constructor arguments of a config section from its mapping."""
    if not isinstance(tree.value, dict):
        faults.append(f"{tree.where}: found {schema.show_value(tree.plain())}, allowed is a mapping")
        return {}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(cls) if f.metadata.get("key", f.name)}
    values: dict[str, Any] = {}
    for key, child in tree.value.items():
        if key not in fields:
            faults.append(f"{child.where}: unknown key '{key}'{schema.nearest(key, fields)}")
    for key, f in fields.items():
        place = f"{path}.{key}".lstrip(".")
        if key in tree.value:
            values[f.name] = _field_value(hints[f.name], tree.value[key], place, faults, origins)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            faults.append(f"{tree.where.origin}: {place}: is required and missing")
        else:
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
            values[f.name] = _default_value(hints[f.name], default, place, faults, origins)
    return values


def _default_value(hint: Any, default: Any, path: str, faults: list[str], origins: dict[str, Where]) -> Any:
    """A default with its origin noted; nested sections and component blocks are filled in like given ones."""
    where = Where(DEFAULT, path=path)
    if isinstance(default, Component):
        return _component(Located({"name": Located(default.name, where)}, where), path, faults, origins)
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return type(default)(**_section(type(default), Located({}, where), path, faults, origins))
    origins[path] = where
    return default


def _field_value(hint: Any, child: Located, path: str, faults: list[str], origins: dict[str, Where]) -> Any:
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if child.value is None and type(None) in choices:
        origins[path] = child.where
        return None
    for choice in choices:
        if choice is Component:
            return _component(child, path, faults, origins)
        if dataclasses.is_dataclass(choice):
            num_faults = len(faults)
            values = _section(choice, child, path, faults, origins)
            return None if len(faults) > num_faults else choice(**values)
    if hint == tuple[Component, ...]:
        if not isinstance(child.value, list):
            faults.append(f"{child.where}: found {schema.show_value(child.plain())}, allowed is a list of component blocks")
            return ()
        if not child.value:
            origins[path] = child.where
        return tuple(_component(item, f"{path}.{i}", faults, origins) for i, item in enumerate(child.value))
    value, fault = schema.check_value(hint, child.plain())
    if fault:
        faults.append(f"{child.where}: {fault}")
    origins[path] = child.where
    return value


def _component(tree: Located, path: str, faults: list[str], origins: dict[str, Where]) -> Component:
    """A component block, checked against its signature and completed with the signature's defaults."""
    nothing = Component("")
    kind = _KIND_OF_PATH[path.split(".")[0]]
    where = Where(tree.where.origin, tree.where.line, path)
    if not isinstance(tree.value, dict) or "name" not in tree.value:
        faults.append(f"{where}: found {schema.show_value(tree.plain())}, allowed is a block with `name:` and arguments")
        return nothing
    block = dict(tree.value)
    name = block.pop("name")
    if not isinstance(name.value, str):
        faults.append(f"{name.where}: found {schema.show_value(name.plain())}, allowed is the name of a {kind} component")
        return nothing
    origins[f"{path}.name"] = name.where
    weight = _weight(block, kind, path, faults, origins)
    arguments = {key: child.plain() for key, child in block.items()}
    places = {key: child.where for key, child in block.items()}
    component = Component(name.value, arguments, weight, Where(name.where.origin, name.where.line, path), places)
    component_faults = registry.REGISTRIES[kind].faults(component)
    faults.extend(component_faults)
    if component_faults:
        return component
    return _with_defaults(component, registry.REGISTRIES[kind], path, origins)


def _weight(
    block: dict[str, Located], kind: str, path: str, faults: list[str], origins: dict[str, Where]
) -> float:
    """The reserved key of a losses block."""
    if kind != "losses":
        return 1.0
    located = block.pop("weight", Located(1.0, Where(DEFAULT, path=f"{path}.weight")))
    weight, fault = schema.check_value(Factor, located.plain())
    if fault:
        faults.append(f"{located.where}: {fault}")
    origins[f"{path}.weight"] = located.where
    return typing.cast(float, weight)


def _with_defaults(
    component: Component, kind: registry.Registry, path: str, origins: dict[str, Where]
) -> Component:
    """Every argument that is not a fact made explicit, so that a stored config does not follow a later default."""
    arguments: dict[str, Any] = {}
    for name, parameter in kind.entry(component).parameters.items():
        if name in registry.FACTS:
            continue
        if name in component.arguments:
            arguments[name] = schema.check_value(parameter.annotation, component.arguments[name])[0]
            origins[f"{path}.{name}"] = component.origins[name]
        elif parameter.default is not inspect.Parameter.empty:
            arguments[name] = parameter.default
            origins[f"{path}.{name}"] = Where(DEFAULT, path=f"{path}.{name}")
    return dataclasses.replace(component, arguments=arguments)


def _check_whole(config: RunConfig) -> None:
    """What no single value tells: settings that contradict one another."""
    train, faults = config.train, []
    place = _places(config.origins)
    if train.micro_batches > train.batch_size:
        faults.append(
            f"{place('train.micro_batches')}: {train.micro_batches} micro-batches of a batch of {train.batch_size} samples; "
            "give at most one per sample"
        )
    for kind in ("losses", "metrics"):
        names = [component.name for component in getattr(config, kind)]
        if not names:
            faults.append(f"{place(kind)}: is empty; name at least one")
        faults.extend(f"{place(f'{kind}.{names.index(n)}.name')}: '{n}' is named twice" for n in {n for n in names if names.count(n) > 1})
    if config.evaluate.votes > 1 and not config.transforms.vote:
        faults.append(
            f"{place('evaluate.votes')}: {config.evaluate.votes} votes need transforms.vote: passes over the same input "
            "are all the same vote"
        )
    if not config.name or set("/\\\0") & set(config.name) or config.name.startswith("."):
        faults.append(f"{place('name')}: {config.name!r} cannot name a run's folder")
    if faults:
        raise ConfigError(*faults)


def _places(origins: Mapping[str, Where]) -> Any:
    return lambda path: origins.get(path, Where(DEFAULT, path=path))
